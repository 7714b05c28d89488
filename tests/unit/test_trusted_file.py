"""Who else could change what the agent obeys, or read its keys: found at every step of the way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from site_agents.trusted_file import secret_fault, write_fault

STRANGER = 12345
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a file away")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "above" / "home"
    folder.mkdir(parents=True, mode=0o700)
    found = folder / "policy.yaml"
    found.write_text("text")
    found.chmod(0o600)
    return found


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o755])
def test_a_file_that_its_owner_alone_writes_is_trusted(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert write_fault(path) is None


@pytest.mark.parametrize(
    ("mode", "who"), [(0o620, "its group"), (0o602, "everybody"), (0o666, "everybody")]
)
@pytest.mark.rule("42")
def test_a_file_that_others_write_is_not(path: Path, mode: int, who: str) -> None:
    path.chmod(mode)
    assert write_fault(path) == f"{path} may be written by {who}: chmod go-w {path}"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_nor_is_one_in_a_folder_that_others_write(path: Path, mode: int) -> None:
    path.parent.chmod(mode)
    found = write_fault(path)
    assert found is not None
    assert f"chmod go-w {path.parent}" in found
    path.unlink()
    assert write_fault(path) == found  # somebody else may be the first to put one there


def test_everybody_may_write_further_up_only_where_nobody_moves_what_is_anothers(
    path: Path,
) -> None:
    above = path.parent.parent
    above.chmod(0o1777)
    assert write_fault(path) is None
    above.chmod(0o777)
    found = write_fault(path)
    assert found is not None
    assert f"chmod o-w {above}" in found


def _loose_target(folder: Path) -> Path:
    (folder / "target").write_text("text")
    (folder / "target").chmod(0o664)
    return folder / "target"


def _target_in_loose_folder(folder: Path) -> Path:
    (folder / "loose").mkdir()
    (folder / "loose" / "target").write_text("text")
    (folder / "loose").chmod(0o777)
    return folder / "loose" / "target"


def _link_in_loose_folder(folder: Path) -> Path:
    (folder / "target").write_text("text")
    (folder / "loose").mkdir()
    (folder / "loose" / "link").symlink_to(folder / "target")
    (folder / "loose").chmod(0o777)
    return folder / "loose" / "link"


def _through_a_linked_folder(folder: Path) -> Path:
    (folder / "real").mkdir()
    (folder / "real" / "target").write_text("text")
    (folder / "alias").symlink_to(folder / "real")
    (folder / "real").chmod(0o770)
    return folder / "alias" / "target"


@pytest.mark.parametrize(
    "make",
    [_loose_target, _target_in_loose_folder, _link_in_loose_folder, _through_a_linked_folder],
)
def test_a_link_is_as_safe_as_every_step_to_its_target(
    path: Path, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path.unlink()
    path.symlink_to(make(tmp_path))
    assert write_fault(path) is not None


def test_a_link_to_a_safe_file_is_safe_and_one_to_itself_is_an_error(
    path: Path, tmp_path: Path
) -> None:
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(os.path.relpath(tmp_path / "elsewhere", path.parent))
    assert write_fault(path) is None
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(OSError, match="too many links"):
        write_fault(path)


@AS_ROOT
def test_a_file_folder_or_link_of_another_user_is_not_trusted(path: Path, tmp_path: Path) -> None:
    os.chown(path, STRANGER, -1)
    found = write_fault(path)
    assert found is not None
    assert f"belongs to user {STRANGER}" in found
    assert f"chown -h {os.geteuid()} {path}" in found
    os.chown(path, 0, -1)
    os.chown(path.parent, STRANGER, -1)
    assert write_fault(path) is not None
    os.chown(path.parent, 0, -1)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert write_fault(path) is None
    os.chown(path, STRANGER, -1, follow_symlinks=False)
    assert write_fault(path) is not None


@pytest.mark.parametrize(("mode", "is_safe"), [(0o600, True), (0o640, False), (0o604, False)])
def test_a_key_is_read_by_nobody_else(path: Path, mode: int, is_safe: bool) -> None:
    path.chmod(mode)
    assert write_fault(path) is None
    assert (secret_fault(path) is None) == is_safe
