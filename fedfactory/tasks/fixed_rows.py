"""Passes of one number of rows for a whole order, filled up with null records.

A kernel rounds by the number of rows that it is given, and weights of a coordinator's choice
amplify its rounding: with passes as long as the draw, one record less moved the noiseless sum by 11
clipping norms. So the number of rows follows public numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from fedfactory.privacy.sampling import ROWS_STEP

# Activations are not counted in the bytes below.
MAX_ROWS: Final = 512
# Memory for per-record gradients at a time. On a CPU tensors over 32 MiB come from fresh pages
# each time, which costs more than more passes.
GRADIENT_BYTES: Final = {"cpu": 1 << 25, "cuda": 1 << 30}
# What fewest rows may take, before one row at a time is the only way.
MOST_GRADIENT_BYTES: Final = 1 << 31


def affordable_rows(wanted: int, record_bytes: int, device_type: str) -> int:
    """Return the rows of a pass that its memory allows: a multiple of 16, or 1.

    What needs several passes is cut into equal ones, so that few rows are null records.
    """
    most = min(wanted, MAX_ROWS, GRADIENT_BYTES[device_type] // max(1, record_bytes))
    most = most // ROWS_STEP * ROWS_STEP
    if most == 0:
        return ROWS_STEP if ROWS_STEP * record_bytes <= MOST_GRADIENT_BYTES else 1
    passes = math.ceil(wanted / most)
    return math.ceil(wanted / passes / ROWS_STEP) * ROWS_STEP


class FixedRows:
    """Lends drawn rows of x (rows, *features) and y (rows,), in passes of `rows` rows each."""

    def __init__(self, x: Tensor, y: Tensor, rows: int) -> None:
        self._data = (x, y)
        self._buffers = tuple(t.new_zeros(rows, *t.shape[1:]) for t in self._data)
        self._rows = rows

    def null(self) -> tuple[Tensor, Tensor]:
        """Return a pass of null records only."""
        for buffer in self._buffers:
            buffer.zero_()
        x, y = self._buffers
        return x, y

    def passes(self, drawn: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Give (x, y, count): the first `count` rows are drawn ones, the others null records."""
        for piece in torch.split(drawn, self._rows):
            count = len(piece)
            if not count:  # an empty tensor splits into one empty piece
                return
            for buffer, values in zip(self._buffers, self._data, strict=True):
                buffer[:count] = values[piece]
                buffer[count:] = 0
            x, y = self._buffers
            yield x, y, count
