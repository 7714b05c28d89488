"""Labelled examples, and the schema that says which a task can take. NumPy only.

x: (examples, *features) float32, finite. y: (examples,), int64 from 0 to classes - 1 or float32.
unit: (examples,) int64, which privacy unit an example belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.columns import Categorical, Classes, Column, Label
from fedfactory.tasks.faults import Fault

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
        self.check_form(x, y, where)
        found = self.sift(x, y)
        for fault in found.faults:
            raise DataError(f"{where}: {fault.sentence}")
        return found.examples

    def check_form(self, x: HasForm, y: HasForm, where: str) -> None:
        """Check dtypes and shapes; no value is looked at.

        Raises:
            DataError: a wrong dtype, shape or length.
        """
        if x.dtype.kind not in "fiu":
            raise DataError(f"{where}: x has dtype {x.dtype}, expected numbers (float32)")
        if not x.shape or x.shape[1:] != self.features:
            wanted = ", ".join(str(n) for n in self.features)
            raise DataError(f"{where}: x has shape {x.shape}, expected (examples, {wanted})")
        if y.dtype.kind not in "fiu":
            raise DataError(f"{where}: y has dtype {y.dtype}, expected numbers")
        if y.shape != x.shape[:1]:
            raise DataError(f"{where}: y has shape {y.shape}, expected {x.shape[:1]} as x has")

    def sift(self, x: NDArray[Any], y: NDArray[Any]) -> Sifted:
        """Return the examples that fit, of arrays of the right form, and what is wrong with others.

        Classes that come as floats are whole numbers, or none: one missing label makes an array of
        integers one of floats.
        """
        fits = np.ones(len(x), np.bool_)
        faults = []
        for what, wrong in (*_wrong_features(self, x), *_wrong_labels(self.label, y)):
            if count := int(wrong.sum()):
                fault = Fault(
                    before=f"{what} in ", after=" examples", count=count, total=len(wrong)
                )
                faults.append(fault)
                fits &= ~wrong
        if faults:
            x, y = x[fits], y[fits]
        examples = Examples(
            x=np.ascontiguousarray(x, dtype=np.float32), y=_labels_of(self.label, y)
        )
        return Sifted(examples=examples, fits=fits, faults=tuple(faults))


class HasForm(Protocol):
    """An array, or what is known of one that was not read."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its entries."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its lengths."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sifted:
    """The examples that fit; `fits` (all of them,) says which they are."""

    examples: Examples
    fits: NDArray[np.bool_]
    faults: tuple[Fault, ...]


def _wrong_features(schema: DataSchema, x: NDArray[Any]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield, for each thing that can be wrong with a column, with which examples it is."""
    rest = tuple(range(1, x.ndim - 1))  # of one column's values (examples, *rest)
    for number, column in enumerate(schema.columns):
        values, named = x[:, number], f"column '{column.name}'"
        finite = np.isfinite(values)
        yield f"{named} is not finite", ~finite.all(axis=rest)
        if isinstance(column, Categorical):
            low, high = 0.0, len(column.categories) - 1.0
            wrong = (values != np.floor(values)) | (values < low) | (values > high)
        else:
            low, high = column.low, column.high
            wrong = (values < low) | (values > high)
        yield f"{named} is outside {low:g} to {high:g}", (wrong & finite).any(axis=rest)


def _wrong_labels(label: Label, y: NDArray[Any]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    finite = np.isfinite(y)
    yield f"label '{label.name}' is not finite", ~finite
    if isinstance(label, Classes):
        low, high = 0.0, float(len(label.names) - 1)
        wrong = (y != np.floor(y)) | (y < low) | (y > high)
    else:
        low, high = label.low, label.high
        wrong = (y < low) | (y > high)
    yield f"label '{label.name}' is outside {low:g} to {high:g}", wrong & finite


def _labels_of(label: Label, y: NDArray[Any]) -> Labels:
    """Return labels that fit as a task takes them: indices, or scaled numbers."""
    if isinstance(label, Classes):
        return np.ascontiguousarray(y, dtype=np.int64)
    scaled = (y.astype(np.float64) - label.centre) / label.scale
    return np.ascontiguousarray(scaled, dtype=np.float32)
