"""Which file system a folder lies on: SQLite's locks and syncs hold on a local disk alone.

https://www.sqlite.org/wal.html, section 1: WAL does not work over a network file system.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import UsageError

MOUNTS: Final = Path("/proc/self/mountinfo")
# The names that proc(5) shows for file systems whose disk is another machine's.
NETWORK: Final = frozenset(
    {
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph", "panfs", "wekafs"),
        *(
            "cifs",
            "smb3",
            "smbfs",
            "fuse.sshfs",
            "fuse.glusterfs",
            "glusterfs",
            "orangefs",
            "pvfs2",
        ),
        *("afs", "fuse.s3fs", "fuse.rclone", "daos", "fuse.dfuse", "ocfs2", "gfs2"),
    }
)
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


def file_system_of(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds `path`, by the text of mountinfo. Pure.

    `path` is absolute and resolved. Empty where `mounts` does not tell.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        # Of mounts on one point the last one listed is the one that shows.
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind


def refuse_network_disk(folder: Path) -> None:
    """Check that a ledger may lie in `folder`.

    Raises:
        UsageError: it lies on a network file system.
    """
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return  # no Linux: SQLite itself must find out
    kind = file_system_of(folder.resolve(), mounts)
    if kind in NETWORK:
        raise UsageError(
            f"{folder} is on a network file system ({kind}), where a ledger's locks and syncs do"
            " not hold: name a folder on a local disk by `ledger:` in agent.yaml"
            " (site-agent init --ledger DIR)"
        )
