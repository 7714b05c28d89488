"""One file as a source: opened for reading only, told by what it is, never by what is in it."""

from __future__ import annotations

import hashlib
from io import BufferedReader
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import DataError
from site_agents.data.versions import Version

_PIECE: Final = 1 << 20
Stamp = tuple[tuple[str, int, int, int], ...]


def open_file(path: Path) -> BufferedReader:
    """Open a file for reading.

    Raises:
        DataError: missing, a folder, or not readable by this user.
    """
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, expected a file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def stamp_of_file(path: Path) -> Stamp:
    """Return what changes whenever a file does, without reading it.

    Raises:
        DataError: missing, or not to be looked at by this user.
    """
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return ((str(path), found.st_ino, found.st_size, found.st_mtime_ns),)


def version_of_file(path: Path) -> Version:
    """Return a file's version. Raises what `open_file` raises."""
    with open_file(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        size = file.tell()
    return Version(fingerprint=f"sha256:{digest.hexdigest()}", bytes=size, files=1)


def file_starts_with(path: Path, earlier: Version) -> bool:
    """Whether a file's first bytes are those of an earlier version."""
    digest = hashlib.sha256()
    left = earlier.bytes
    with open_file(path) as file:
        while left and (piece := file.read(min(left, _PIECE))):
            digest.update(piece)
            left -= len(piece)
    return not left and f"sha256:{digest.hexdigest()}" == earlier.fingerprint
