"""The columns that a task declares by name: what every site must have, whatever it calls them.

A run writes them as text, so that an order can carry them: `age:50:20,bmi:25:5` are numbers with
their centre and scale, `sex:f|m,stage:I|II|III` names of categories, and a label is one of either.
All of it is declared: nothing is computed from records. Texts are bounded, since they arrive from
outside.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.errors import ValueRangeError
from fedfactory.tasks.parameters import brief

MAX_COLUMNS: Final = 512
MAX_CATEGORIES: Final = 1000
MAX_SCALES: Final = 1e6
MAX_TEXT: Final = 65536
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_CATEGORY: Final = re.compile(r"[^\s|,:](?:[^|,:\x00-\x1f\x7f]{0,62}[^\s|,:])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Numeric:
    """A column of numbers, in x as they come, each from `low` to `high`."""

    name: str
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Categorical:
    """A column of names, in x as their index in `categories`."""

    name: str
    categories: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """A label that is one of `names`, in y as its index there (int64)."""

    name: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A number with its declared centre and scale: a feature, or in y (float32) a scaled label.

    A value further than a million scales from the centre is in another unit, or no measurement.
    """

    name: str
    centre: float
    scale: float

    @property
    def low(self) -> float:
        """The least value that fits."""
        return self.centre - MAX_SCALES * self.scale

    @property
    def high(self) -> float:
        """The largest value that fits."""
        return self.centre + MAX_SCALES * self.scale

    def column(self) -> Numeric:
        """Return the column as data must have it."""
        return Numeric(name=self.name, low=self.low, high=self.high)


Column = Numeric | Categorical
Label = Classes | Scaled


def numbered(prefix: str, count: int, *, low: float, high: float) -> tuple[Column, ...]:
    """Return numeric columns prefix0, prefix1, ... for a task whose features have no names."""
    return tuple(Numeric(name=f"{prefix}{i}", low=low, high=high) for i in range(count))


def parse_numeric(key: str, text: str) -> tuple[Scaled, ...]:
    """Parse `age:50:20,bmi:25:5`; the empty text declares none.

    Raises:
        ValueRangeError: names `key`, and says what is wrong with which column.
    """
    found = tuple(parse_scaled(key, part) for part in _parts(key, text))
    _check_distinct(key, [column.name for column in found])
    return found


def parse_categorical(key: str, text: str) -> tuple[Categorical, ...]:
    """Parse `sex:f|m,stage:I|II|III`; the empty text declares none.

    Raises:
        ValueRangeError: names `key`, and says what is wrong with which column.
    """
    found = []
    for part in _parts(key, text):
        name, names = _named_categories(key, part)
        found.append(Categorical(name=name, categories=names))
    _check_distinct(key, [column.name for column in found])
    return tuple(found)


def parse_classes(key: str, text: str) -> Classes:
    """Parse `outcome:0|1`.

    Raises:
        ValueRangeError: names `key`, and says what is wrong.
    """
    name, names = _named_categories(key, text)
    if len(names) < 2:
        raise ValueRangeError(key, text, "at least two classes, as in outcome:0|1")
    return Classes(name=name, names=names)


def parse_scaled(key: str, text: str) -> Scaled:
    """Parse `cost:1000:500`: a name, its centre, its scale.

    Raises:
        ValueRangeError: names `key`, and says what is wrong.
    """
    words = text.strip().split(":")
    form = "name:centre:scale, as in age:50:20"
    if len(words) != 3 or not NAME.fullmatch(words[0]):
        raise ValueRangeError(key, brief(text), form)
    try:
        centre, scale = float(words[1]), float(words[2])
    except ValueError:
        raise ValueRangeError(key, brief(text), f"{form}: two numbers") from None
    if not (math.isfinite(centre) and abs(centre) <= 1e12 and 1e-12 <= scale <= 1e12):
        raise ValueRangeError(
            key, brief(text), f"{form}: a centre within 1e12 and a scale from 1e-12 to 1e12"
        )
    return Scaled(name=words[0], centre=centre, scale=scale)


def _parts(key: str, text: str) -> list[str]:
    if len(text) > MAX_TEXT:
        raise ValueRangeError(key, brief(text), f"at most {MAX_TEXT} characters")
    parts = text.split(",") if text.strip() else []
    if len(parts) > MAX_COLUMNS:
        raise ValueRangeError(key, f"({len(parts)} columns)", f"at most {MAX_COLUMNS}")
    return parts


def _named_categories(key: str, text: str) -> tuple[str, tuple[str, ...]]:
    if len(text) > MAX_TEXT:
        raise ValueRangeError(key, brief(text), f"at most {MAX_TEXT} characters")
    name, colon, rest = text.strip().partition(":")
    names = tuple(rest.split("|"))
    if not colon or not NAME.fullmatch(name):
        raise ValueRangeError(key, brief(text), "name:category|category, as in sex:f|m")
    if len(names) > MAX_CATEGORIES:
        raise ValueRangeError(key, f"{name} ({len(names)})", f"at most {MAX_CATEGORIES} categories")
    for category in names:
        if not _CATEGORY.fullmatch(category):
            raise ValueRangeError(
                key,
                brief(text),
                "categories of 1 to 64 characters, none of them | , : and no space at either end",
            )
    if len(set(names)) != len(names):
        raise ValueRangeError(key, brief(text), "each category once")
    return name, names


def _check_distinct(key: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueRangeError(key, name, "each column once")
