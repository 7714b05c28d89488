"""Small files that people and processes pass each other: whole under their name, or not there.

All are the owner's alone (0600). Decides how a file is written; who writes what is told elsewhere.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_in_one_piece(path: Path, text: str) -> None:
    """Write a file that is found whole under its name; a power failure may take it away.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    _replace(path, text.encode(), durable=False)


def write_durably(path: Path, content: str | bytes) -> None:
    """Write a file that is found whole under its name, also after a power failure.

    Raises:
        OSError: it could not be written; what was there before is still there.
    """
    _replace(path, content.encode() if isinstance(content, str) else content, durable=True)
    sync_folder(path.parent)


def create_durably(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file that must not be there yet; `sync_folder` makes its name durable too.

    Raises:
        OSError: it is there, or could not be written.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove_durably(path: Path) -> None:
    """Remove a file if it is there, also after a power failure. Raises OSError."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: Path, content: bytes, *, durable: bool) -> None:
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
