"""Labelled examples, and the schema that says which a task can take. NumPy only.

x: (examples, *features) float32, finite. y: (examples,), int64 from 0 to classes - 1 or float32.
unit: (examples,) int64, which privacy unit an example belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.columns import Categorical, Classes, Column, Label

Labels = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Features `x`, labels `y`; `unit` is None where each example is a unit of its own."""

    x: NDArray[np.float32]
    y: Labels
    unit: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: NDArray[np.intp]) -> Self:
        """Return the examples at `indices`, in that order."""
        unit = None if self.unit is None else self.unit[indices]
        return type(self)(x=self.x[indices], y=self.y[indices], unit=unit)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteData:
    """What a site works on: it trains on one part and evaluates on the other."""

    train: Examples
    test: Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Examples that are windows over the rows of one unit, ordered by the column `order`.

    Each is `length` rows long, one begins every `stride` rows, and the label is its last row's.
    """

    order: str
    length: int
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSchema:
    """The form of one task's examples.

    `features` is the shape of one example; `columns` name and bound its first axis: the columns of
    a table, the channels of an image or window. `low` and `high` of a column find a file in other
    units (pixels 0..255) before it trains badly. With `windows` the rows of a table become windows
    (columns, length), and a unit is needed.
    """

    features: tuple[int, ...]
    columns: tuple[Column, ...]
    label: Label
    windows: Windows | None = None

    def __post_init__(self) -> None:
        assert self.features[0] == len(self.columns)

    @property
    def classes(self) -> int | None:
        """How many labels there are; None where the label is a number."""
        return len(self.label.names) if isinstance(self.label, Classes) else None

    def of_rows(self) -> DataSchema:
        """Return the schema of the rows that windows are made of."""
        return replace(self, features=self.features[:1], windows=None)

    def check(self, x: NDArray[Any], y: NDArray[Any], where: str) -> Examples:
        """Return the arrays as Examples if they fit. `where` names them in the error.

        y holds the index of a class, or the label's number, which is scaled here as declared.

        Raises:
            DataError: a wrong dtype, shape, length or range, or a value that is not finite. It
                counts what is wrong and never shows a value.
        """
        _check_form(self, x, y, where)
        return Examples(
            x=np.ascontiguousarray(_checked_features(self, x, where), dtype=np.float32),
            y=_checked_labels(self.label, y, where),
        )


def _check_form(schema: DataSchema, x: NDArray[Any], y: NDArray[Any], where: str) -> None:
    if x.dtype.kind not in "fiu":
        raise DataError(f"{where}: x has dtype {x.dtype}, expected numbers (float32)")
    if x.shape[1:] != schema.features:
        wanted = ", ".join(str(n) for n in schema.features)
        raise DataError(f"{where}: x has shape {x.shape}, expected (examples, {wanted})")
    wanted_kinds, wanted = ("iu", "whole numbers (int64)") if schema.classes else ("fiu", "numbers")
    if y.dtype.kind not in wanted_kinds:
        raise DataError(f"{where}: y has dtype {y.dtype}, expected {wanted}")
    if y.shape != (len(x),):
        raise DataError(f"{where}: y has shape {y.shape}, expected ({len(x)},) as x has")


def _checked_features(schema: DataSchema, x: NDArray[Any], where: str) -> NDArray[Any]:
    rest = tuple(range(1, x.ndim - 1))  # of one column's values (examples, *rest)
    for number, column in enumerate(schema.columns):
        values, named = x[:, number], f"{where}: column '{column.name}'"
        _refuse(~np.isfinite(values).all(axis=rest), f"{named} is not finite")
        if isinstance(column, Categorical):
            low, high = 0.0, len(column.categories) - 1.0
            wrong = (values != np.floor(values)) | (values < low) | (values > high)
        else:
            low, high = column.low, column.high
            wrong = (values < low) | (values > high)
        _refuse(wrong.any(axis=rest), f"{named} is outside {low:g} to {high:g}")
    return x


def _checked_labels(label: Label, y: NDArray[Any], where: str) -> Labels:
    if isinstance(label, Classes):
        top = len(label.names) - 1
        _refuse((y < 0) | (y > top), f"{where}: label '{label.name}' is outside 0 to {top}")
        return np.ascontiguousarray(y, dtype=np.int64)
    _refuse(~np.isfinite(y), f"{where}: label '{label.name}' is not finite")
    _refuse(
        (y < label.low) | (y > label.high),
        f"{where}: label '{label.name}' is outside {label.low:g} to {label.high:g}",
    )
    scaled = (y.astype(np.float64) - label.centre) / label.scale
    return np.ascontiguousarray(scaled, dtype=np.float32)


def _refuse(wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        raise DataError(f"{what} in {int(wrong.sum())} of {len(wrong)} examples")
