"""A site's own words for classes and categories, as the task's. Decided by configuration alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.columns import Categorical, Classes


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

    def indices(self, found: Sequence[str], where: str) -> NDArray[np.int64]:
        """Return each name's index, (len(found),).

        Raises:
            DataError: names that neither task nor map know; it counts them and shows none.
        """
        distinct = {name: self.index_of(name) for name in set(found)}
        result = np.fromiter((distinct[name] for name in found), np.int64, len(found))
        self.refuse_unknown(int((result < 0).sum()), len(found), where)
        return result

    def refuse_unknown(self, wrong: int, total: int, where: str) -> None:
        """Raise DataError if any of `total` names was not known."""
        if wrong:
            raise DataError(
                f"{where}: {wrong} of {total} values are none of '{self._name}':"
                f" expected {self._expected}; map your own names onto these"
            )


def shown(names: Iterable[str]) -> str:
    """Return names in one line, no more than ten."""
    listed = list(names)
    more = f", ... ({len(listed)} in all)" if len(listed) > 10 else ""
    return ", ".join(listed[:10]) + more
