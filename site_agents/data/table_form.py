"""Batches of a table into pieces: a site's own columns in the roles that a task's schema has.

Missing values are dropped with their row, or filled by a constant that the site declares; nothing
is computed from records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError, UsageError
from fedfactory.tasks.columns import Categorical, Classes
from fedfactory.tasks.examples import DataSchema
from site_agents.data.cells import moments, named, numbers, texts
from site_agents.data.labels import LabelMap, shown
from site_agents.data.pieces import Piece

DROP: Final = "drop"
UNIT: Final = "the unit"
Floats = NDArray[np.float64]
Missing = NDArray[np.bool_]


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
        for name, own in self._own.items():
            _check_there(name, own, found, where)
        if roles.unit is not None:
            _check_there(UNIT, roles.unit, found, where)
        choices = [
            c for c in (*schema.columns, schema.label) if isinstance(c, Categorical | Classes)
        ]
        self._maps = {c.name: LabelMap(c, roles.map.get(c.name, {}), where) for c in choices}
        self._stand_ins = {c.name: self._stand_in(c.name) for c in schema.columns}
        self._is_number: bool | None = None  # of the column that orders rows, as first seen

    @property
    def columns(self) -> list[str]:
        """The own columns that need reading, each once."""
        unit = self._roles.unit
        return list(dict.fromkeys([*self._own.values(), *([unit] if unit else [])]))

    def piece(self, batch: Any, first: int) -> Piece:
        """Return a pyarrow record batch as a piece; `first` is its first record's number, from 1.

        Raises:
            DataError: a column of another type, a missing value without a rule, a name that is in
                no map.
        """
        where = f"{self._where}, records {first} to {first + batch.num_rows - 1}"
        keep = np.ones(batch.num_rows, np.bool_)
        x = np.empty((batch.num_rows, len(self._schema.columns)))
        for i, column in enumerate(self._schema.columns):
            values, missing = self._values(column.name, batch, where)
            x[:, i] = self._filled(column.name, values, missing, keep, where)
        label = self._schema.label.name
        y, missing = self._values(label, batch, where)
        self._drop(label, y, missing, keep, where)
        return Piece(
            x=x,
            y=y.astype(np.int64) if isinstance(self._schema.label, Classes) else y,
            unit=self._units(batch, keep, where),
            identity=None,
            order=self._order(batch, keep, where),
            keep=keep,
        )

    def _values(self, name: str, batch: Any, where: str) -> tuple[Floats, Missing]:
        where = f"{where}: column '{self._own[name]}'"
        cells = batch.column(self._own[name])
        if name not in self._maps:
            return numbers(cells, where, self._decimal)
        codes, names, missing = named(cells, where)
        found = self._maps[name]
        index = np.array([found.index_of(own) for own in names] + [0], np.int64)
        values = index[codes]  # code -1, a missing value, takes the last
        found.refuse_unknown(int((values < 0).sum()), len(values), where)
        return values.astype(np.float64), missing

    def _filled(
        self, name: str, values: Floats, missing: Missing, keep: Missing, where: str
    ) -> Floats:
        stand_in = self._stand_ins[name]
        if stand_in is None:
            self._drop(name, values, missing, keep, where)
        else:
            values[missing] = stand_in
        return values

    def _drop(self, name: str, values: Floats, missing: Missing, keep: Missing, where: str) -> None:
        if not missing.any():
            return
        if self._roles.missing.get(name) != DROP:
            own = self._own.get(name, name)
            raise DataError(
                f"{where}: column '{own}': {int(missing.sum())} of {len(missing)} values are"
                f" missing; say what stands for them under missing: {{{name}: drop}}, which leaves"
                " the row out, or a value in place of drop (features only)"
            )
        keep &= ~missing
        values[missing] = 0

    def _units(self, batch: Any, keep: Missing, where: str) -> Sequence[str] | None:
        own = self._roles.unit
        if own is None:
            return None
        names, missing = texts(batch.column(own), f"{where}: column '{own}'")
        self._drop(own, np.zeros(len(names)), missing, keep, where)
        return names

    def _order(self, batch: Any, keep: Missing, where: str) -> Floats | None:
        if self._schema.windows is None:
            return None
        name = self._schema.windows.order
        named_here = f"{where}: column '{self._own[name]}'"
        values, missing, is_number = moments(
            batch.column(self._own[name]), named_here, self._decimal, is_number=self._is_number
        )
        self._is_number = is_number
        self._drop(name, values, missing, keep, where)
        return values

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


def _wanted(schema: DataSchema) -> list[str]:
    names = [*(column.name for column in schema.columns), schema.label.name]
    return names if schema.windows is None else [*names, schema.windows.order]


def _check_there(name: str, own: str, found: Sequence[str], where: str) -> None:
    times = found.count(own)
    if times == 1:
        return
    if times > 1:
        raise DataError(f"{where}: column '{own}' is there {times} times, expected once")
    near = get_close_matches(own, found, n=1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    role = f", which is to be '{name}'" if own != name else ""
    raise DataError(
        f"{where}: no column '{own}'{role}; found {shown(found)}{hint}; name yours with"
        f" {'unit: YOURS' if name == UNIT else f'columns: {{{name}: YOURS}}'}"
    )
