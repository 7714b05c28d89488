"""Which file system a folder lies on, by a mountinfo as proc(5) shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfactory.contracts.errors import UsageError
from site_agents import local_disk
from site_agents.local_disk import file_system_of, refuse_network_disk

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:30 / /home rw,relatime shared:9 master:2 - nfs4 filer:/home rw,vers=4.2
41 40 0:31 / /home/scratch\040dir rw - lustre mds@o2ib:/scratch rw
42 22 0:32 / /tmp rw - tmpfs tmpfs rw
43 22 0:33 / /tmp rw - nfs filer:/tmp rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/fedfactory", "ext4"),
        ("/home/me/site", "nfs4"),
        ("/homes", "ext4"),
        ("/home/scratch dir/x", "lustre"),
        ("/tmp/x", "nfs"),  # the later mount covers the earlier one
    ],
)
def test_the_innermost_and_latest_mount_counts(path: str, kind: str):
    assert file_system_of(Path(path), MOUNTS) == kind


def test_nothing_known_nothing_said():
    assert file_system_of(Path("/x"), "") == ""


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(local_disk, "MOUNTS", mounts)
    refuse_network_disk(tmp_path)  # no such file: no Linux
    mounts.write_text("1 0 0:1 / / rw - gpfs fs0 rw\n")
    with pytest.raises(UsageError, match=r"network file system \(gpfs\).*--ledger DIR"):
        refuse_network_disk(tmp_path)
    mounts.write_text("1 0 0:1 / / rw - xfs /dev/sda rw\n")
    refuse_network_disk(tmp_path)
