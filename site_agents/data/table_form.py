"""Batches of a table into pieces: a site's own columns in the roles that a task's schema has.

Missing values are dropped with their row, or filled by a constant that the site declares; nothing
is computed from records. A row that does not fit is lost and counted, and changes no other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError, UsageError
from fedfactory.tasks.columns import Categorical, Classes
from fedfactory.tasks.examples import DataSchema
from fedfactory.tasks.faults import Fault
from site_agents.data.cells import Cells, Mask, Names, moments, named, numbers
from site_agents.data.column_names import listed, without_header
from site_agents.data.labels import LabelMap
from site_agents.data.pieces import Piece

DROP: Final = "drop"
UNIT: Final = "the unit"
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """How a site's table serves a task, by the task's names.

    `columns`: task's column -> own column, where they differ. `map`: column -> own name -> task's
    name. `missing`: column -> `drop`, or the number or category that stands in. `unit`: own column.
    """

    columns: Mapping[str, str]
    map: Mapping[str, Mapping[str, str | int]]
    missing: Mapping[str, str | float]
    unit: str | None


class TableForm:
    """One table read for one schema.

    `found` are the names of all its columns, `where` names it in errors; `decimal` is the sign in
    numbers that are written as text (None: texts are no numbers).

    Raises:
        DataError: a column that is missing or there twice, a map to what the task does not have.
        UsageError: a stand-in that does not fit its column.
    """

    def __init__(
        self,
        schema: DataSchema,
        roles: Roles,
        found: Sequence[str],
        where: str,
        *,
        decimal: str | None,
    ) -> None:
        self._schema = schema
        self._roles = roles
        self._where = where
        self._decimal = decimal
        self._own = {name: roles.columns.get(name, name) for name in _wanted(schema)}
        wanted = dict(self._own) if roles.unit is None else {**self._own, UNIT: roles.unit}
        for name, own in wanted.items():
            _check_there(name, own, found, where, known=wanted.values())
        choices = [
            c for c in (*schema.columns, schema.label) if isinstance(c, Categorical | Classes)
        ]
        self._maps = {c.name: LabelMap(c, roles.map.get(c.name, {}), where) for c in choices}
        self._stand_ins = {c.name: self._stand_in(c.name) for c in schema.columns}
        self._dates = self._ordered = 0  # cells of the column that orders rows

    @property
    def columns(self) -> list[str]:
        """The own columns that need reading, each once."""
        unit = self._roles.unit
        return list(dict.fromkeys([*self._own.values(), *([unit] if unit else [])]))

    def piece(self, batch: Any) -> Piece:
        """Return a pyarrow record batch as a piece, one record for each row.

        Raises:
            DataError: a column of a type that cannot hold what the schema asks for.
        """
        rows = _Rows(batch.num_rows)
        x = np.empty((batch.num_rows, len(self._schema.columns)))
        for i, column in enumerate(self._schema.columns):
            found = self._cells(column.name, batch)
            if (stand_in := self._stand_ins[column.name]) is not None:
                found.values[found.missing] = stand_in
                rows.lose(found.wrong, found.faults)
            else:
                self._lose(rows, column.name, found)
            x[:, i] = found.values
        label = self._cells(self._schema.label.name, batch)
        self._lose(rows, self._schema.label.name, label)
        y = label.values
        return Piece(
            x=x,
            y=y.astype(np.int64) if isinstance(self._schema.label, Classes) else y,
            unit=self._units(batch, rows),
            identity=None,
            order=self._order(batch, rows),
            keep=rows.keep,
            faults=tuple(rows.faults),
        )

    def check_form(self, kinds: Any) -> None:
        """Check the types of a pyarrow schema's columns, by reading no rows of it. See `piece`."""
        import pyarrow as pa

        empty = pa.schema([kinds.field(name) for name in self.columns]).empty_table()
        self.piece(pa.RecordBatch.from_arrays([c.combine_chunks() for c in empty], self.columns))

    def _cells(self, name: str, batch: Any) -> Cells:
        own = self._own[name]
        column = f"column '{own}'"
        if name not in self._maps:
            return numbers(batch.column(own), column, self._where, self._decimal)
        found, known = named(batch.column(own), column, self._where), self._maps[name]
        index = np.append(known.indices(found.names), 0)
        values = index[found.codes]  # code -1, a missing value, takes the last
        unknown = values < 0
        faults = found.faults
        if count := int(unknown.sum()):
            faults = (*faults, known.unknown(count, len(values), column))
        return Cells(
            values=np.where(unknown, 0, values).astype(np.float64),
            missing=found.missing,
            wrong=found.wrong | unknown,
            faults=faults,
        )

    def _lose(self, rows: _Rows, name: str, found: Cells | Names) -> None:
        """Lose the rows whose cell is wrong, or is missing without a rule or by the rule `drop`."""
        rows.lose(found.wrong, found.faults)
        missing = int(found.missing.sum())
        if not missing:
            return
        if self._roles.missing.get(name) == DROP:
            rows.lose(found.missing, ())
            return
        fault = Fault(
            before=f"column '{self._own.get(name, name)}': ",
            after=" values are missing; say what stands for them under missing:"
            f" {{{name}: drop}}, which leaves the row out, or a value in place of drop (features"
            " only)",
            count=missing,
            total=len(rows.keep),
        )
        rows.lose(found.missing, (fault,))

    def _units(self, batch: Any, rows: _Rows) -> Sequence[str] | None:
        own = self._roles.unit
        if own is None:
            return None
        found = named(batch.column(own), f"column '{own}'", self._where)
        self._lose(rows, own, found)
        table = np.array([*found.names, ""], dtype=object)
        units: list[str] = table[found.codes].tolist()  # code -1, no name, takes the last
        return units

    def _order(self, batch: Any, rows: _Rows) -> Floats | None:
        if self._schema.windows is None:
            return None
        name = self._schema.windows.order
        own = self._own[name]
        found = moments(batch.column(own), f"column '{own}'", self._where, self._decimal)
        self._lose(rows, name, found)
        self._dates += int((rows.keep & found.dates).sum()) if found.dates is not None else 0
        self._ordered += int(rows.keep.sum())
        if 0 < self._dates < self._ordered:
            rows.faults.append(
                Fault(
                    before=f"column '{own}': ",
                    after=" values are dates, and the others are numbers",
                    count=self._dates,
                    total=self._ordered,
                )
            )
        return found.values

    def _stand_in(self, name: str) -> float | None:
        rule = self._roles.missing.get(name)
        if rule is None or rule == DROP:
            return None
        if name in self._maps:
            index = self._maps[name].index_of(str(rule))
            if index >= 0:
                return float(index)
        elif isinstance(rule, int | float):
            return float(rule)
        raise UsageError(
            f"{self._where}: missing.{name}={rule}: expected drop, or"
            f" {'a category of the task' if name in self._maps else 'a number'}"
        )


class _Rows:
    """Which rows of a batch are kept, and what is wrong with others."""

    def __init__(self, count: int) -> None:
        self.keep: Mask = np.ones(count, np.bool_)
        self.faults: list[Fault] = []

    def lose(self, which: Mask, faults: Sequence[Fault]) -> None:
        """Keep those rows no more."""
        self.keep &= ~which
        self.faults += faults


def _wanted(schema: DataSchema) -> list[str]:
    names = [*(column.name for column in schema.columns), schema.label.name]
    return names if schema.windows is None else [*names, schema.windows.order]


def _check_there(
    name: str, own: str, found: Sequence[str], where: str, *, known: Collection[str]
) -> None:
    times = found.count(own)
    if times == 1:
        return
    if times > 1:
        raise DataError(f"{where}: column '{own}' is there {times} times, expected once")
    near = [] if without_header(found) else get_close_matches(own, found, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    if any(normalize("NFC", name) == normalize("NFC", own) for name in found):
        hint = " (one differs in its Unicode form alone: copy the name from the file)"
    role = f", which is to be '{name}'" if own != name else ""
    raise DataError(
        f"{where}: no column '{own}'{role}; found {listed(found, known)}{hint}; name yours with"
        f" {'unit: YOURS' if name == UNIT else f'columns: {{{name}: YOURS}}'}"
    )
