"""How long a ledger must be: its newest row's number and head, in a file beside it.

Two slots are written in turn, each in place and within one sector, so a crash leaves at least one
whole. They reach the disk when the kernel writes them: after a power failure the file may lag
behind the ledger, and a lagging file is no reason to refuse.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.durable_file import create_durably

HEAD: Final = "ledger.head"
SLOT_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A row that was seen: its number and head."""

    sequence: int
    head: str


class HeadFile:
    """The open file. Raises OSError where it cannot be opened or written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / HEAD
        self._handle = os.open(self.path, os.O_RDWR)

    @classmethod
    def create(cls, folder: Path, told: Told) -> None:
        """Make the file, durably but for its name in the folder."""
        create_durably(folder / HEAD, _slot(told) * 2)

    def write(self, told: Told) -> None:
        """Write what was seen over the older slot."""
        os.pwrite(self._handle, _slot(told), told.sequence % 2 * SLOT_BYTES)

    def read(self) -> Told | None:
        """Return what was seen last; None if neither slot is whole."""
        content = os.pread(self._handle, 2 * SLOT_BYTES + 1, 0)
        found = [_told(content[at : at + SLOT_BYTES]) for at in (0, SLOT_BYTES)]
        whole = [told for told in found if told is not None]
        if len(content) != 2 * SLOT_BYTES or not whole:
            return None
        return max(whole, key=lambda told: told.sequence)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def _slot(told: Told) -> bytes:
    return to_json(told).encode().ljust(SLOT_BYTES - 1) + b"\n"


def _told(slot: bytes) -> Told | None:
    try:
        return from_json(Told, slot)
    except ProtocolError:
        return None
