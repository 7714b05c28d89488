"""Who beside the agent's own user and root could change, or read, a file of the site's home.

What the agent obeys (policy, configuration, the administrator's word, approvals) must be changed by
nobody else, and its keys read by nobody else. A file is as safe as its place: whoever writes to its
folder puts another in its place, and a link is as safe as every step on the way to its target.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = 0
_MOST_LINKS: Final = 40
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_READ: Final = stat.S_IRWXG | stat.S_IRWXO


def write_fault(path: Path) -> str | None:
    """Say who else could change what `path` names, and what to do about it; None: nobody.

    What is not there has no fault but its folder's. Access lists (ACL) show in the group's
    bits. Raises OSError: the way to it cannot be looked at.
    """
    for step in _steps(path):
        if found := _folder_fault(step.parent):
            return found
        try:
            status = step.lstat()
        except FileNotFoundError:
            return None
        if found := _owner_fault(step, status):
            return found
        if not stat.S_ISLNK(status.st_mode) and status.st_mode & _OTHERS_WRITE:
            return f"{step} may be written by {_others(status)}: chmod go-w {step}"
    return None


def secret_fault(path: Path) -> str | None:
    """Say who else could change or read the key in `path`, and what to do; None: nobody."""
    if found := write_fault(path):
        return found
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    if status.st_mode & _OTHERS_READ:
        return f"{path} is a key, and others may read it: chmod go= {path}"
    return None


def _steps(path: Path) -> Iterator[Path]:
    """Yield a path and, as long as it is a link, what it points to."""
    step = path.absolute()
    for _ in range(_MOST_LINKS):
        yield step
        if not step.is_symlink():
            return
        step = step.parent / step.readlink()
    raise OSError(0, "too many links", str(path))


def _folder_fault(folder: Path) -> str | None:
    """Check a folder, and those above it, by the path as written and as links resolve it."""
    for place in dict.fromkeys((folder, Path(os.path.realpath(folder)))):
        try:
            status = place.stat()
        except FileNotFoundError:
            return None
        if found := _owner_fault(place, status):
            return found
        if status.st_mode & _OTHERS_WRITE:
            return (
                f"the folder {place} may be written by {_others(status)}, who can put another file"
                f" there: chmod go-w {place}"
            )
        for above in place.parents:
            mode = above.stat().st_mode
            # In a sticky folder nobody moves what is another's.
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return (
                    f"the folder {above} may be written by everybody, who can put another {place}"
                    f" there: chmod o-w {above}"
                )
    return None


def _owner_fault(path: Path, status: os.stat_result) -> str | None:
    me = os.geteuid()
    if status.st_uid in (me, _ROOT):
        return None
    return (
        f"{path} belongs to user {status.st_uid}, neither to the agent's user {me} nor to root:"
        f" chown -h {me} {path}"
    )


def _others(status: os.stat_result) -> str:
    return "everybody" if status.st_mode & stat.S_IWOTH else "its group"
