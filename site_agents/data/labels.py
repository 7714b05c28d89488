"""A site's own words for classes and categories, as the task's. Decided by configuration alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.columns import Categorical, Classes
from fedfactory.tasks.faults import Fault


class LabelMap:
    """Finds the index of a name among a column's categories; `mapped` is own name -> task's name.

    `where` names the data in errors.

    Raises:
        DataError: the map leads to a name that the task does not have.
    """

    def __init__(
        self, column: Classes | Categorical, mapped: Mapping[str, str | int], where: str
    ) -> None:
        self._name = column.name
        names = column.names if isinstance(column, Classes) else column.categories
        self._index = {name: i for i, name in enumerate(names)}
        self._expected = shown(names)
        for own, name in ((own, str(name)) for own, name in mapped.items()):
            if name not in self._index:
                raise DataError(
                    f"{where}: the map for '{self._name}' leads to '{name}', which the task does"
                    f" not have: expected one of {self._expected}"
                )
            self._index[own] = self._index[name]

    def index_of(self, name: str) -> int:
        """Return a name's index, -1 if neither task nor map knows it."""
        return self._index.get(name, -1)

    def indices(self, found: Sequence[str]) -> NDArray[np.int64]:
        """Return each name's index, (len(found),), -1 where neither task nor map knows it."""
        distinct = {name: self.index_of(name) for name in set(found)}
        return np.fromiter((distinct[name] for name in found), np.int64, len(found))

    def unknown(self, count: int, total: int, what: str) -> Fault:
        """Return the fault of names that neither task nor map knows; `what` they are in."""
        return Fault(
            before=f"{what}: ",
            after=f" values are none of '{self._name}': expected {self._expected}; map your own"
            " names onto these",
            count=count,
            total=total,
        )


def is_missing(value: Any) -> bool:
    """Whether an array's entry is none, or no number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def name_of(value: Any) -> str:
    """Return an array's entry as a name: a whole number is its digits, whatever its type."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value)


def shown(names: Iterable[str]) -> str:
    """Return names in one line, no more than ten."""
    listed = list(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more
