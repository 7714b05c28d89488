"""Which version of its data a source holds, and what happened since the version on record.

Data may change; its history may not: all versions of a lineage share one privacy budget. So a
change costs nothing and resets nothing, but it is noticed and said to the administrator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import DataError, ProtocolError
from fedfactory.durable_file import write_durably

FOLDER: Final = "data"
Kind = Literal["first seen", "unchanged", "appended", "changed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Data by content: `fingerprint` is 'sha256:<hex>', over `bytes` bytes in `files` files."""

    fingerprint: str
    bytes: int
    files: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happened to a source; `sentence` is for the site's administrator."""

    kind: Kind
    sentence: str


def compare(
    name: str, recorded: Version | None, found: Version, starts_with: Callable[[Version], bool]
) -> Change:
    """Say what happened since `recorded`; `starts_with` tells whether found data begins with it.

    It is asked only where data grew.
    """
    if recorded is None:
        return Change(kind="first seen", sentence=f"data '{name}' is seen for the first time")
    if recorded == found:
        return Change(kind="unchanged", sentence=f"data '{name}' is as recorded")
    if found.bytes > recorded.bytes and starts_with(recorded):
        grown = found.bytes - recorded.bytes
        return Change(
            kind="appended",
            sentence=f"data '{name}' was appended to: {grown} bytes more, all before unchanged;"
            " the lineage and its budget stay the same",
        )
    return Change(
        kind="changed",
        sentence=f"data '{name}' changed: {_size(recorded)} are now {_size(found)}, of other"
        " content; the lineage and its budget stay the same. If these are other people or machines,"
        " give it a lineage of its own; if nobody meant to change it, find out who did",
    )


def _size(version: Version) -> str:
    return f"{version.bytes} bytes in {version.files} file{'s' if version.files != 1 else ''}"


def read_version(home: Path, name: str) -> Version | None:
    """Return the version on record at a site, None if the source was never seen.

    Raises:
        DataError: the record cannot be read.
    """
    path = home / FOLDER / f"{name}.json"
    try:
        return from_json(Version, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ProtocolError) as error:
        raise DataError(
            f"{path}: not a record of a data source's version ({type(error).__name__});"
            " if it is broken, delete it: the data then count as seen for the first time"
        ) from error


def write_version(home: Path, name: str, version: Version) -> None:
    """Put a version on record, durably.

    Raises:
        DataError: the home cannot be written.
    """
    path = home / FOLDER / f"{name}.json"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, to_json(version))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
