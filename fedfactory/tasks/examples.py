"""Labelled examples, and the schema that says which a task can take. NumPy only.

x: (examples, *features) float32, finite; y: (examples,) int64, from 0 to classes - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Features `x` (examples, *features) float32 and labels `y` (examples,) int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: NDArray[np.intp]) -> Self:
        """Return the examples at `indices`, in that order."""
        return type(self)(x=self.x[indices], y=self.y[indices])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteData:
    """What a site works on: it trains on one part and evaluates on the other."""

    train: Examples
    test: Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSchema:
    """The form of one task's examples.

    `features` is the shape of one example, `classes` the number of labels, and `low`..`high` the
    range of every feature: a file in other units (pixels 0..255) is found before it trains badly.
    """

    features: tuple[int, ...]
    classes: int
    low: float
    high: float

    def check(self, x: NDArray[Any], y: NDArray[Any], where: str) -> Examples:
        """Return the arrays as Examples if they fit. `where` names them in the error.

        Raises:
            DataError: a wrong dtype, shape, length or range, or a value that is not finite.
        """
        if x.dtype.kind not in "fiu":
            raise DataError(f"{where}: x has dtype {x.dtype}, expected numbers (float32)")
        if y.dtype.kind not in "iu":
            raise DataError(f"{where}: y has dtype {y.dtype}, expected whole numbers (int64)")
        if x.ndim != 1 + len(self.features) or x.shape[1:] != self.features:
            wanted = ", ".join(str(n) for n in self.features)
            raise DataError(f"{where}: x has shape {x.shape}, expected (examples, {wanted})")
        if y.shape != (len(x),):
            raise DataError(f"{where}: y has shape {y.shape}, expected ({len(x)},) as x has")
        if len(x) == 0:
            raise DataError(f"{where}: holds no examples")
        if not np.isfinite(x).all():
            rows = int((~np.isfinite(x)).any(axis=tuple(range(1, x.ndim))).sum())
            raise DataError(f"{where}: x is not finite in {rows} of {len(x)} examples")
        if x.min() < self.low or x.max() > self.high:
            raise DataError(
                f"{where}: x reaches from {x.min():g} to {x.max():g},"
                f" expected {self.low:g} to {self.high:g}; scale it"
            )
        if y.min() < 0 or y.max() >= self.classes:
            raise DataError(
                f"{where}: labels reach from {y.min()} to {y.max()},"
                f" expected 0 to {self.classes - 1}"
            )
        return Examples(
            x=np.ascontiguousarray(x, dtype=np.float32), y=np.ascontiguousarray(y, dtype=np.int64)
        )
