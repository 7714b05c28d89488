"""Data in pieces, as every kind of source reads it, put together as what a task works on.

Without differential privacy a record that does not fit is an error. With it such a record counts as
null: it is left out, it is counted, and it moves no other record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.examples import DataSchema, Examples, Labels, SiteData
from fedfactory.tasks.faults import Fault, FaultCounts
from fedfactory.tasks.growing import Growing
from fedfactory.tasks.windows import windows_of
from site_agents.data.split import Split

WINDOWS_NEED_A_UNIT: Final = (
    "windows need a unit, so that none spans two machines and each machine is one; name the column"
    " with unit: COLUMN"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Consecutive records of a source: raw x (records, *features) and y (records,).

    `unit` names each record's privacy unit (None: it names none), `order` its place among the
    unit's rows (windows only). The split goes by unit, else by `identity`, else by the record's
    number in the source. `keep` is False for what a missing-value rule drops and for what does not
    fit, which `faults` count: still counted, so that numbers stay.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    unit: Sequence[str | None] | None
    identity: Sequence[str] | None
    order: NDArray[np.float64] | None
    keep: NDArray[np.bool_]
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.keep)

    def without(
        self, which: NDArray[np.bool_], fault: Callable[[int, int, str], Fault], what: str
    ) -> Piece:
        """Return the piece without the records `which` (all of them,); `fault` counts them."""
        count = int(which.sum())
        if not count:
            return self
        found = fault(count, len(self), what)
        return replace(self, keep=self.keep & ~which, faults=(*self.faults, found))

    def among(self, there: NDArray[np.bool_], faults: tuple[Fault, ...]) -> Piece:
        """Return these records, of a table, as those of `there` (rows,) that are; others are lost.

        `faults` say why they are.
        """
        if there.all():
            return replace(self, faults=(*faults, *self.faults))
        keep = there.copy()
        keep[there] = self.keep
        return Piece(
            x=_spread(self.x, there),
            y=_spread(self.y, there),
            unit=None
            if self.unit is None
            else _spread(np.array(self.unit, object), there).tolist(),
            identity=None,
            order=None if self.order is None else _spread(self.order, there),
            keep=keep,
            faults=(*faults, *self.faults),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrivateData:
    """What is left of a site's data once whatever does not fit counts as null, and what that was.

    The counts stay at the site.
    """

    data: SiteData
    faults: tuple[Fault, ...]


def _spread(values: NDArray[Any], there: NDArray[np.bool_]) -> NDArray[Any]:
    """Return an array with a row for each of `there`: the values, and zeros."""
    found = np.zeros((len(there), *values.shape[1:]), values.dtype)
    found[there] = values
    return found


def whole_piece(
    x: NDArray[Any],
    y: NDArray[Any],
    unit: Sequence[str | None] | None,
    identity: Sequence[str] | None = None,
) -> Piece:
    """Return a piece of records in a task's own form, none of them dropped."""
    keep = np.ones(len(y), np.bool_)
    return Piece(x=x, y=y, unit=unit, identity=identity, order=None, keep=keep)


def gather(
    pieces: Iterable[Piece], schema: DataSchema, split: Split, where: str, memory_bytes: int
) -> SiteData:
    """Check every piece against the schema and sort its records into train and test.

    `where` names the source in errors; arrays of more than `memory_bytes` rest on disk.

    Raises:
        DataError: data that does not fit, or all of it on one side.
    """
    sides: _Sides | None = None
    seen = 0
    for piece in pieces:
        by_unit = piece.unit is not None
        if schema.windows is not None and not by_unit:
            raise DataError(f"{where}: {WINDOWS_NEED_A_UNIT}")
        sides = sides or _Sides(schema, split, where, memory_bytes, by_unit=by_unit)
        if sides.by_unit != by_unit:
            raise DataError(f"{where}: some records have a unit and others have none")
        named = f"{where}, records {seen + 1} to {seen + len(piece)}"
        seen += len(piece)
        for fault in sides.add(piece):
            if fault.stops:
                raise DataError(f"{named}: {fault.sentence}")
    if sides is None or seen == 0:
        raise DataError(f"{where}: holds no records")
    data, _ = sides.finish()
    if not len(data.train) or not len(data.test):
        raise DataError(f"{where}: {one_sided(data)}")
    return data


def gather_privately(
    pieces: Iterable[Piece],
    schema: DataSchema,
    split: Split,
    where: str,
    memory_bytes: int,
    *,
    by_unit: bool,
) -> PrivateData:
    """Sort the records that fit into train and test, and count the others.

    No record fails, and none changes what becomes of another. `by_unit`: whether the site's policy
    says that units are more than rows; records that then name none count as null.

    Raises:
        DataError: a piece of another form than the schema's: the whole source's fault.
    """
    sides = _Sides(schema, split, where, memory_bytes, by_unit=by_unit)
    counts = FaultCounts()
    for piece in pieces:
        counts.add(sides.add(piece))
    data, short = sides.finish()
    counts.add(short)
    return PrivateData(data=data, faults=counts.all())


def one_sided(data: SiteData) -> str:
    """Say that a side of the split is empty."""
    return (
        f"{len(data.train)} examples to train on and {len(data.test)} to test on, expected at"
        " least one of each; it needs more data"
    )


class _Sides:
    """Both parts of the data as they grow."""

    def __init__(
        self, schema: DataSchema, split: Split, where: str, memory_bytes: int, *, by_unit: bool
    ) -> None:
        self._schema = schema
        self._split = split
        self._where = where
        self.by_unit = by_unit
        self._train, self._test = (_Side(schema, memory_bytes, by_unit=by_unit) for _ in range(2))

    def add(self, piece: Piece) -> Sequence[Fault]:
        """Add the records of a piece that fit; return what is wrong with the others."""
        faults = list(piece.faults)
        names = piece.unit if piece.unit is not None else piece.identity
        tests = (
            self._split.tests_of_records(len(piece))
            if names is None
            else self._split.tests_of_units([str(name) for name in names])
        )
        kept = np.flatnonzero(self._named(piece, faults))
        # A table's rows; arrays of windows come in the schema's own form.
        form = self._schema if piece.order is None else self._schema.of_rows()
        form.check_form(piece.x, piece.y, self._where)
        found = form.sift(piece.x[kept], piece.y[kept])
        faults += found.faults
        kept = kept[found.fits]
        for side, wanted in ((self._train, ~tests[kept]), (self._test, tests[kept])):
            side.add(piece, found.examples, kept, np.flatnonzero(wanted))
        return faults

    def finish(self) -> tuple[SiteData, Sequence[Fault]]:
        """Return the parts, and how many units are too short for a window."""
        sides = (self._train, self._test)
        train, test = (side.finish() for side in sides)
        units, short = (sum(counts) for counts in zip(*(s.units for s in sides), strict=True))
        faults = []
        if self._schema.windows is not None and short:
            after = f" units have no window of {self._schema.windows.length} records in order"
            faults.append(Fault(before="", after=after, count=short, total=units, stops=False))
        return SiteData(train=train, test=test), faults

    def _named(self, piece: Piece, faults: list[Fault]) -> NDArray[np.bool_]:
        """Return which records are kept, now that those have to name a unit."""
        if not self.by_unit:
            return piece.keep
        names = piece.unit if piece.unit is not None else [None] * len(piece)
        nameless = np.fromiter((name is None for name in names), np.bool_, len(piece))
        nameless &= piece.keep
        if count := int(nameless.sum()):
            faults.append(
                Fault(before="", after=" records name no unit", count=count, total=len(piece))
            )
        return piece.keep & ~nameless


class _Side:
    """One part of the data as it grows; units are numbered as they appear in it."""

    def __init__(self, schema: DataSchema, memory_bytes: int, *, by_unit: bool) -> None:
        self._schema = schema
        self._by_unit = by_unit
        self._x, self._y = Growing(memory_bytes), Growing(memory_bytes)
        self._unit, self._order = Growing(memory_bytes), Growing(memory_bytes)
        self._numbers: dict[str, int] = {}
        self.units = (0, 0)  # once finished: how many, and how many of them without a window

    def add(
        self,
        piece: Piece,
        examples: Examples,
        kept: NDArray[np.intp],
        chosen: NDArray[np.intp],
    ) -> None:
        """Add the chosen ones of a piece's examples, which are its records `kept`."""
        self._x.append(examples.x[chosen])
        self._y.append(examples.y[chosen])
        if self._by_unit and piece.unit is not None:
            numbers = self._numbers
            names = (str(piece.unit[i]) for i in kept[chosen])
            found = (numbers.setdefault(name, len(numbers)) for name in names)
            self._unit.append(np.fromiter(found, np.int64, len(chosen)))
        if piece.order is not None:
            self._order.append(piece.order[kept][chosen])

    def finish(self) -> Examples:
        """Return the examples; none of them still have the schema's form."""
        if not len(self._y):
            return no_examples(self._schema, by_unit=self._by_unit)
        unit = self._unit.finish() if self._by_unit else None
        found = Examples(x=self._x.finish(), y=self._y.finish(), unit=unit)
        count = len(self._numbers)
        if self._schema.windows is None or not len(self._order):
            self.units = (count, 0)
            return found
        windows = windows_of(found, self._order.finish(), self._schema.windows)
        assert windows.unit is not None
        self.units = (count, count - len(np.unique(windows.unit)))
        return windows


def no_examples(schema: DataSchema, *, by_unit: bool) -> Examples:
    """Return no examples, in the form of a schema."""
    y: Labels = np.empty(0, np.float32) if schema.classes is None else np.empty(0, np.int64)
    return Examples(
        x=np.empty((0, *schema.features), np.float32),
        y=y,
        unit=np.empty(0, np.int64) if by_unit else None,
    )
