"""Which rows belong to one privacy unit, and how a mechanism draws from them.

A unit is a row, or all rows with one value of the site's `unit` column; then a drawn unit
contributes one row, chosen at random at each draw, so that it weighs what a single row weighs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedfactory.privacy.chacha import NoiseSource


class Units:
    """The rows of a data set by unit. `unit` (rows,) names each row's; None: every row is one."""

    def __init__(self, rows: int, unit: NDArray[np.int64] | None) -> None:
        self._rows: NDArray[np.intp] | None = None
        self._count = rows
        if unit is not None:
            self._rows = np.argsort(unit, kind="stable")
            _, self._starts, self._sizes = np.unique(
                unit[self._rows], return_index=True, return_counts=True
            )
            self._count = len(self._starts)

    def __len__(self) -> int:
        return self._count

    def sample(self, source: NoiseSource, rate: float) -> NDArray[np.intp]:
        """Return the rows of one Poisson sample: each unit is in it with probability `rate`."""
        return self._one_row_each(source, source.poisson_sample(self._count, rate))

    def one_row_each(self, source: NoiseSource) -> NDArray[np.intp]:
        """Return one row of every unit."""
        return self._one_row_each(source, np.arange(self._count))

    def _one_row_each(self, source: NoiseSource, units: NDArray[np.intp]) -> NDArray[np.intp]:
        if self._rows is None:
            return units
        rows: NDArray[np.intp] = self._rows[
            self._starts[units] + source.choose_below(self._sizes[units])
        ]
        return rows
