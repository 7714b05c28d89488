"""Bounds of the values that cross a wire or a file, written in their types.

`examples: Count` says what a peer may send; the codec checks it as it reads and names the field.
Nothing is clamped: a value outside its bound refuses what it came with. Every whole number is at
most 2^53, so that each is exact as a float64, and sums and products of a run's numbers stay finite.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Protocol, Union, get_args, get_origin, get_type_hints

from fedfactory.contracts.errors import FieldError

MOST: Final = 2**53
MAX_METRICS: Final = 64
MAX_AXES: Final = 32
_LONG: Final = 10**20


class Bound(Protocol):
    """What a value of a type must keep beside the type; `str` of it ends 'expected ...'."""

    def admits(self, value: Any) -> bool:
        """Whether a value of the right type is within the bound."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `least` (not itself, if `above`) to `most`."""

    least: float
    most: float
    above: bool = False

    def admits(self, value: Any) -> bool:
        """Compare exactly: Python compares whole numbers of any length with floats."""
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def __str__(self) -> str:
        most = "2^53" if self.most == MOST else f"{self.most:g}"
        return f"a number {'above' if self.above else 'from'} {self.least:g} to {most}"


@dataclass(frozen=True, slots=True)
class Form:
    """A text that fully matches `pattern`; `told` describes it."""

    pattern: str
    told: str

    def admits(self, value: Any) -> bool:
        """Whether the whole text matches."""
        return re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return self.told


@dataclass(frozen=True, slots=True)
class Entries:
    """A list or mapping of at most `most` entries."""

    most: int

    def admits(self, value: Any) -> bool:
        """Whether there are few enough."""
        return len(value) <= self.most

    def __str__(self) -> str:
        return f"at most {self.most} entries"


Count = Annotated[int, Range(0, MOST)]
Ordinal = Annotated[int, Range(1, MOST)]  # counts from 1: rounds, sendings, sites
Whole = Annotated[int, Range(-MOST, MOST)]
Real = Annotated[float, Range(-1e100, 1e100)]
Positive = Annotated[float, Range(0, 1e100, above=True)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Seconds = Annotated[float, Range(0, 1e10)]
UnixTime = Annotated[float, Range(0, 253402300799)]  # to the year 9999, the last of `datetime`
Fraction = Annotated[float, Range(0, 1)]
# Beyond float32's largest (3.4e38): a task computes its metrics in no wider type.
MetricValue = Annotated[float, Range(-1e40, 1e40)]
Norm = Annotated[float, Range(0, 1e154)]  # the root of the largest float64
MetricName = Annotated[
    str, Form(r"[A-Za-z0-9][A-Za-z0-9_.@/-]{0,63}", "names of 1 to 64 letters, digits, '_.@/-'")
]
Metrics = Annotated[Mapping[MetricName, MetricValue], Entries(MAX_METRICS)]
# The shared model's: a strategy names and combines them, so they may be more and larger.
SHARED_METRIC: Final = Range(-1e100, 1e100)
SharedMetrics = Annotated[Mapping[str, Annotated[float, SHARED_METRIC]], Entries(1024)]
Label = Annotated[
    str, Form(r"[A-Za-z0-9][A-Za-z0-9 _.:+()/-]{0,63}", "1 to 64 letters, digits, ' _.:+()/-'")
]


def shareable(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a shared model whose values can be written down: finite, in bound."""
    return {name: value for name, value in metrics.items() if SHARED_METRIC.admits(value)}


def check_fields(value: object) -> None:
    """Check a dataclass's own fields against the bounds in their types, also built directly.

    Looks at scalars and optional ones; what they hold is checked by its own class.

    Raises:
        FieldError: names the class and the field.
    """
    cls: Any = type(value)
    for name, kind, bounds in _bounded(cls):
        found = getattr(value, name)
        if found is None:
            continue
        where = f"{type(value).__name__}.{name}"
        if kind is int and type(found) is not int:
            raise forbidden(where, "a whole number", found)
        for bound in bounds:
            if not bound.admits(found):
                raise forbidden(where, str(bound), found)


def forbidden(where: str, expected: str, found: object) -> FieldError:
    """Return the error of a value that the type of the field `where` forbids.

    A number is shown if it is short, of all else the type alone: a text is the sender's.
    """
    shown = type(found).__name__
    if isinstance(found, int | float) and not isinstance(found, bool):
        short = isinstance(found, float) or abs(found) < _LONG
        shown += f" {found!r}" if short else " of more than 20 digits"
    return FieldError(f"{where}: expected {expected}", shown)


@functools.cache
def _bounded(cls: Any) -> tuple[tuple[str, Any, tuple[Bound, ...]], ...]:
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        optional = get_origin(hint) in (Union, types.UnionType)
        for option in get_args(hint) if optional else (hint,):
            if get_origin(option) is Annotated and get_args(option)[0] in (int, float, str):
                kind, *bounds = get_args(option)
                found.append((field.name, kind, tuple(bounds)))
                break
    return tuple(found)
