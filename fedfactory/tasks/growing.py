"""Arrays that grow piece by piece and may outgrow memory.

Beyond a bound the rows go to an unlinked file in the temporary folder ($TMPDIR) and come back as a
memory map: indexed like any array, read from disk as needed, gone when the process ends.
"""

from __future__ import annotations

import tempfile
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import EnvironmentFailedError

MEMORY_BYTES: Final = 1 << 30


class Growing:
    """Rows of one shape and dtype; `memory_bytes` is what may rest in memory."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._bound = memory_bytes
        self._pieces: list[NDArray[Any]] = []
        self._bytes = 0
        self._rows = 0
        self._file: IO[bytes] | None = None
        self._form: NDArray[Any] | None = None

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows (rows, ...) at the end; all must have the first ones' shape and dtype.

        Raises:
            EnvironmentFailedError: they outgrow memory, and the temporary folder takes no more.
        """
        if self._form is None:
            self._form = np.empty((0, *rows.shape[1:]), rows.dtype)
        assert rows.shape[1:] == self._form.shape[1:]
        assert rows.dtype == self._form.dtype
        self._rows += len(rows)
        self._bytes += rows.nbytes
        self._pieces.append(np.ascontiguousarray(rows))
        if self._bytes > self._bound:
            self._spill()

    def __len__(self) -> int:
        return self._rows

    def finish(self) -> NDArray[Any]:
        """Return all rows as one array; nothing can be added after."""
        assert self._form is not None
        if self._file is None:
            return np.concatenate([self._form, *self._pieces])
        shape = (self._rows, *self._form.shape[1:])
        mapped = np.memmap(self._file, dtype=self._form.dtype, mode="r+", shape=shape)
        self._file.close()  # the map keeps the pages
        return np.asarray(mapped)

    def _spill(self) -> None:
        """Move the pieces in memory to the file."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115  the map outlives this
            for piece in self._pieces:
                self._file.write(piece.data)
            self._file.flush()
        except OSError as error:
            raise EnvironmentFailedError(
                f"data beyond {self._bound} bytes of memory cannot rest in {tempfile.gettempdir()}"
                f" ({error.strerror}): name a roomier folder with TMPDIR"
            ) from error
        self._pieces = []
