"""A blob on its way in: written, measured and hashed by pieces, put in place when it is whole."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from fedfactory.contracts.model import BlobRef
from fedfactory.wire.arrays import file_pieces


class ArrivingBlob:
    """The bytes so far of the blob `ref`, in a hidden file beside `into`.

    What an earlier process left there is taken up: it is hashed once, then the rest is appended.
    """

    def __init__(self, into: Path, ref: BlobRef) -> None:
        self.ref = ref
        self._into = into
        self._partial = into.with_name(f".{into.name}.part")
        self._handle = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._hash = hashlib.sha256()
        self.length = 0
        for piece in file_pieces(self._partial):
            self._hash.update(piece)
            self.length += len(piece)
        if self.length > ref.bytes:
            self._start_over()

    def write(self, piece: bytes | memoryview) -> bool:
        """Append a piece; False, and nothing written, if it goes beyond the blob's length."""
        if self.length + len(piece) > self.ref.bytes:
            self._start_over()
            return False
        rest = memoryview(piece)
        while rest:  # a write may take less than it was given
            taken = os.write(self._handle, rest)
            self._hash.update(rest[:taken])
            self.length += taken
            rest = rest[taken:]
        return True

    def commit(self) -> bool:
        """Put the blob in place; if its bytes are not what `ref` says, throw them away instead."""
        whole = self.length == self.ref.bytes
        if not whole or "sha256:" + self._hash.hexdigest() != self.ref.digest:
            self._start_over()
            return False
        self._partial.replace(self._into)
        return True

    def _start_over(self) -> None:
        os.ftruncate(self._handle, 0)
        self._hash = hashlib.sha256()
        self.length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)
