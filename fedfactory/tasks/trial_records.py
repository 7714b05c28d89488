"""Made records for the trial of private work: what fits a schema, and what would disturb it most.

x: (rows, *features) float32, y: (rows,), on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from fedfactory.tasks.columns import Categorical, Numeric
from fedfactory.tasks.examples import DataSchema
from fedfactory.tasks.objectives import Objective

Records = tuple[Tensor, Tensor]

_DECADES: Final = 7.0  # from a column's range down to its scale (columns.MAX_SCALES)


class TrialRecords:
    """Records of one schema, the same for the same seed."""

    def __init__(self, schema: DataSchema, objective: Objective, seed: int) -> None:
        self._schema = schema
        self._y_type = objective.y_type
        self._generator = torch.Generator().manual_seed(seed)
        self._numbers = torch.tensor([isinstance(c, Numeric) for c in schema.columns])

    def null(self, rows: int) -> Records:
        """Return null records."""
        return torch.zeros(rows, *self._schema.features), torch.zeros(rows, dtype=self._y_type)

    def fitting(self, rows: int) -> Records:
        """Return records that fit: its categories, and numbers of all sizes from low to high."""
        x = torch.empty(rows, *self._schema.features)
        for number, column in enumerate(self._schema.columns):
            shape = x[:, number].shape
            if isinstance(column, Categorical):
                x[:, number] = self._whole(len(column.categories), shape)
            else:
                x[:, number] = self._numbers_of(column, shape)
        return x, self._whole(self._schema.classes or 2, (rows,)).to(self._y_type)

    def neighbours(self, rows: int) -> Iterator[tuple[str, Records]]:
        """Yield kinds of records that fit, to stand beside others, with their names."""
        yield "null", self.null(rows)
        yield "other", self.fitting(rows)

    def unfit_neighbours(self, rows: int) -> Iterator[tuple[str, Records]]:
        """Yield kinds beyond their columns' range, which a network may refuse to take."""
        x, y = self.fitting(rows)
        x[:, self._numbers] *= 1e30
        yield "huge", (x, y)
        x, y = self.fitting(rows)
        x[:, self._numbers] = torch.inf
        x[::3, self._numbers] = torch.nan
        yield "infinite", (x, y)

    def _numbers_of(self, column: Numeric, shape: tuple[int, ...]) -> Tensor:
        """Return numbers from the whole range, and in two of three rows ones near its middle."""
        low, high = column.low, column.high
        if not math.isfinite(high - low):
            low, high = -1.0, 1.0
        parts = torch.rand(shape, generator=self._generator, dtype=torch.float64) * 2.0 - 1.0
        sizes = torch.rand(shape, generator=self._generator, dtype=torch.float64) * -_DECADES
        sizes[::3] = 0.0
        values = (low + high) / 2.0 + parts * 10.0**sizes * (high - low) / 2.0
        return values.clamp(low, high).float()

    def _whole(self, below: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(below, shape, generator=self._generator).float()
