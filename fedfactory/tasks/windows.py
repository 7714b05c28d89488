"""Rows of readings into windows of one unit each."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fedfactory.tasks.examples import Examples, Windows
from fedfactory.tasks.growing import Growing

PIECE: Final = 4096


def windows_of(rows: Examples, order: NDArray[np.float64], form: Windows) -> Examples:
    """Return the windows (columns, length) over rows (rows, columns), in order within each unit.

    The first window of a unit begins at its first row, the next `stride` rows later, as long as
    `length` rows remain; a unit with fewer rows has none. A window's label is its last row's.
    """
    assert rows.unit is not None
    sequence = np.lexsort((order, rows.unit))
    unit = rows.unit[sequence]
    firsts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]]) if len(unit) else np.empty(0, int)
    counts = np.diff(np.r_[firsts, len(unit)])
    starts = np.concatenate(
        [
            np.empty(0, np.intp),
            *(
                np.arange(first, first + count - form.length + 1, form.stride)
                for first, count in zip(firsts, counts, strict=True)
            ),
        ]
    )
    lasts = sequence[starts + form.length - 1] if len(starts) else starts
    return Examples(
        x=_gather(rows.x, sequence, starts, form.length), y=rows.y[lasts], unit=rows.unit[lasts]
    )


def _gather(
    x: NDArray[np.float32], sequence: NDArray[np.intp], starts: NDArray[np.intp], length: int
) -> NDArray[np.float32]:
    """Copy windows piece by piece; the rows of each piece are fetched once."""
    found = Growing()
    found.append(np.empty((0, x.shape[1], length), np.float32))
    for begin in range(0, len(starts), PIECE):
        part = starts[begin : begin + PIECE]
        low, high = part[0], part[-1] + length
        views = sliding_window_view(x[sequence[low:high]], length, axis=0)
        found.append(views[part - low])
    return found.finish()
