"""Where a ledger may live: on one host, in one file, under one name. A second copy is found out."""

from __future__ import annotations

import hashlib
import platform
import stat
from pathlib import Path
from typing import Final

LINK: Final = "a link"
_MACHINE_ID: Final = Path("/etc/machine-id")


def host() -> str:
    """Return what names this host, hashed: machine-id(5) asks that it does not leave as it is."""
    try:
        name = _MACHINE_ID.read_text().strip()
    except OSError:
        name = ""
    return "sha256:" + hashlib.sha256(f"fedfactory {name or platform.node()}".encode()).hexdigest()


def place(path: Path) -> str:
    """Name this very file: it may be moved with its folder, but a copy has another inode.

    LINK for a link, or a file of several names: through it a second agent would find the same file.

    Raises:
        OSError: there is no such file.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return LINK
    return f"inode {found.st_ino}"
