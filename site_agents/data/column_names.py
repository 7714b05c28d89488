"""Names of a table's columns, as far as they may be shown.

In a table without a header the first record stands where the names do. A name that reads as a
number or a date is taken for a sign of that, and then only names that the site itself declared, or
a task asks for, are shown.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

from site_agents.data.labels import shown

_LONGEST: Final = 64  # of a number or date as people write them
_VALUE: Final = re.compile(
    r"[+-]?[\d.,' ]*\d[\d.,' ]*([eE][+-]?\d+)?%?"  # numbers of any custom
    r"|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?"  # dates
)


def without_header(names: Sequence[str]) -> bool:
    """Whether a name reads as a value."""
    return any(_VALUE.fullmatch(name.strip()) for name in names if len(name) <= _LONGEST)


def presentable(names: Sequence[str], known: Collection[str]) -> list[str]:
    """Return each name, or the column's number where the name may be a record's value."""
    if not without_header(names):
        return list(names)
    return [
        name if name in known else f"column {number}" for number, name in enumerate(names, start=1)
    ]


def listed(names: Sequence[str], known: Collection[str]) -> str:
    """Return the names in one line, or how many there are where they may be values."""
    if not without_header(names):
        return shown(names)
    there = [name for name in names if name in known]
    also = f", among them {shown(there)}" if there else ""
    return (
        f"{len(names)} columns{also}; a name reads as a number or a date, so names are not shown"
        " (is there a header?)"
    )
