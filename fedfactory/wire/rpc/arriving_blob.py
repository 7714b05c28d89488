"""A blob on its way in: written, measured and hashed by pieces, put in place when it is whole."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fedfactory.contracts.model import BlobRef


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `length` bytes of a blob, as a state of SHA-256 that goes on from there."""

    length: int
    hashed: Any


class ArrivingBlob:
    """The bytes so far of the blob `ref`, in the file `partial`.

    What an earlier process left there is taken up: it is hashed once, then the rest is appended.
    `known` is what a caller remembers of it, and saves the hashing.
    """

    def __init__(self, partial: Path, ref: BlobRef, known: Prefix | None = None) -> None:
        self.ref = ref
        self._partial = partial
        self._handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._hash = hashlib.sha256()
        self.length = 0
        found = os.fstat(self._handle).st_size
        if known is not None and known.length == found:
            self._hash, self.length = known.hashed.copy(), found
        elif found <= ref.bytes:
            self._take_up()
        else:
            self.start_over()

    @property
    def prefix(self) -> Prefix:
        """What has arrived, to be remembered."""
        return Prefix(self.length, self._hash.copy())

    @property
    def is_whole(self) -> bool:
        """Whether length and digest are those of the blob."""
        whole = self.length == self.ref.bytes
        return whole and "sha256:" + self._hash.hexdigest() == self.ref.digest

    def write(self, piece: bytes | memoryview) -> bool:
        """Append a piece; False, and all thrown away, if it goes beyond the blob's length."""
        if self.length + len(piece) > self.ref.bytes:
            self.start_over()
            return False
        rest = memoryview(piece)
        while rest:  # a write may take less than it was given
            taken = os.write(self._handle, rest)
            self._hash.update(rest[:taken])
            self.length += taken
            rest = rest[taken:]
        return True

    def go_on_from(self, offset: int) -> None:
        """Keep the first `offset` bytes of those that have arrived."""
        if offset == self.length:
            return
        os.ftruncate(self._handle, offset)
        self._take_up()

    def commit(self, into: Path) -> bool:
        """Put the blob in place; if its bytes are not what `ref` says, throw them away instead."""
        if not self.is_whole:
            self.start_over()
            return False
        self._partial.replace(into)
        return True

    def sync(self) -> None:
        """Have the bytes on disk."""
        os.fsync(self._handle)

    def start_over(self) -> None:
        """Throw away what has arrived."""
        os.ftruncate(self._handle, 0)
        self._hash = hashlib.sha256()
        self.length = 0

    def _take_up(self) -> None:
        from fedfactory.wire.arrays import file_pieces  # NumPy comes with it

        self._hash = hashlib.sha256()
        self.length = 0
        for piece in file_pieces(self._partial):
            self._hash.update(piece)
            self.length += len(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._handle)
