"""Data in pieces, as every kind of source reads it, put together as what a task works on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.examples import DataSchema, Examples, SiteData
from fedfactory.tasks.growing import Growing
from fedfactory.tasks.windows import windows_of
from site_agents.data.split import Split


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """Consecutive records of a source: raw x (records, *features) and y (records,).

    `unit` names each record's privacy unit, `order` its place among the unit's rows (windows only).
    The split goes by unit, else by `identity`, else by the record's number in the source.
    `keep` is False for what a missing-value rule drops: still counted, so that numbers stay.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    unit: Sequence[str] | None
    identity: Sequence[str] | None
    order: NDArray[np.float64] | None
    keep: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.y)


def whole_piece(
    x: NDArray[Any],
    y: NDArray[Any],
    unit: Sequence[str] | None,
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
    sides = (_Side(schema, memory_bytes), _Side(schema, memory_bytes))
    seen = 0
    for piece in pieces:
        if schema.windows is not None and piece.unit is None:
            raise DataError(
                f"{where}: windows need a unit, so that none spans two machines and each machine"
                " is one; name the column with unit: COLUMN"
            )
        named = f"{where}, records {seen + 1} to {seen + len(piece)}"
        seen += len(piece)
        names = piece.unit if piece.unit is not None else piece.identity
        tests = split.tests_of_records(len(piece)) if names is None else split.tests_of_units(names)
        # A table's rows; arrays of windows come in the schema's own form.
        form = schema if piece.order is None else schema.of_rows()
        kept = np.flatnonzero(piece.keep)
        examples = form.check(piece.x[kept], piece.y[kept], named)
        for side, wanted in zip(sides, (~tests[kept], tests[kept]), strict=True):
            side.add(piece, examples, kept, np.flatnonzero(wanted))
    if seen == 0:
        raise DataError(f"{where}: holds no records")
    train, test = (side.finish() for side in sides)
    if not len(train) or not len(test):
        raise DataError(
            f"{where}: {len(train)} examples to train on and {len(test)} to test on, expected at"
            " least one of each; it needs more data"
        )
    return SiteData(train=train, test=test)


class _Side:
    """One part of the data as it grows; units are numbered as they appear in it."""

    def __init__(self, schema: DataSchema, memory_bytes: int) -> None:
        self._schema = schema
        self._x, self._y = Growing(memory_bytes), Growing(memory_bytes)
        self._unit, self._order = Growing(memory_bytes), Growing(memory_bytes)
        self._numbers: dict[str, int] = {}

    def add(
        self,
        piece: Piece,
        examples: Examples,
        kept: NDArray[np.intp],
        chosen: NDArray[np.intp],
    ) -> None:
        """Add the chosen of the kept records of a piece."""
        self._x.append(examples.x[chosen])
        self._y.append(examples.y[chosen])
        if piece.unit is not None:
            numbers = self._numbers
            names = (piece.unit[i] for i in kept[chosen])
            found = (numbers.setdefault(name, len(numbers)) for name in names)
            self._unit.append(np.fromiter(found, np.int64, len(chosen)))
        if piece.order is not None:
            self._order.append(piece.order[kept][chosen])

    def finish(self) -> Examples:
        unit = self._unit.finish() if self._numbers else None
        found = Examples(x=self._x.finish(), y=self._y.finish(), unit=unit)
        if self._schema.windows is None or not len(self._order):
            return found
        return windows_of(found, self._order.finish(), self._schema.windows)
