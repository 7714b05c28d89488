"""The operators whose signature counts: a key each, until a day, and who compared it. Pure.

A pin is of a key: a certificate that is renewed for the same key stays pinned. When it has ended,
or its key was revoked, no plan that the key signed counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

DATE: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")
_FEBRUARY: Final = 2
_ERA_DAYS: Final = 146097  # of 400 years
_EPOCH_DAYS: Final = 719468  # from 0000-03-01 to 1970-01-01


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """The person of the site who compared a fingerprint with its operator, and the day."""

    by: str
    on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorPin:
    """A key's fingerprint that counts until the end of a day (YYYY-MM-DD, UTC).

    `confirmed` is None until a person compared it with its operator, by another way than it came.
    """

    key: str
    until: str
    confirmed: Confirmation | None

    def days_left(self, now: float) -> int:
        """Return how many days the pin still counts after today; below 0: it has ended."""
        return day_number(self.until) - _today(now)


def is_date(text: str) -> bool:
    """Whether a text names a day of the calendar, as YYYY-MM-DD."""
    return DATE.fullmatch(text) is not None and _text(day_number(text)) == text


def day_text(now: float) -> str:
    """Return the day at Unix time `now`, in UTC.

    >>> day_text(1_800_000_000.0)
    '2027-01-15'
    """
    return _text(_today(now))


def day_number(text: str) -> int:
    """Return the days from 1970-01-01 to a YYYY-MM-DD (Howard Hinnant, days_from_civil).

    >>> day_number("1970-01-01"), day_number("2000-03-01")
    (0, 11017)
    """
    year, month, day = map(int, text.split("-"))
    year -= month <= _FEBRUARY  # a year begins with March here: the leap day is its last
    era, of_era = divmod(year, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    of_days = of_era * 365 + of_era // 4 - of_era // 100 + of_year
    return era * _ERA_DAYS + of_days - _EPOCH_DAYS


def _text(number: int) -> str:
    """Return the YYYY-MM-DD of so many days from 1970-01-01 (the same, civil_from_days)."""
    era, of_days = divmod(number + _EPOCH_DAYS, _ERA_DAYS)
    of_era = (of_days - of_days // 1460 + of_days // 36524 - of_days // 146096) // 365
    of_year = of_days - (365 * of_era + of_era // 4 - of_era // 100)
    month_index = (5 * of_year + 2) // 153
    day = of_year - (153 * month_index + 2) // 5 + 1
    month = (month_index + 2) % 12 + 1
    year = era * 400 + of_era + (month <= _FEBRUARY)
    return f"{year:04d}-{month:02d}-{day:02d}"


def _today(now: float) -> int:
    return int(now // 86400)


def pins_of(pins: Mapping[str, OperatorPin], key: str) -> dict[str, OperatorPin]:
    """Return the pins of a key, by name."""
    return {name: pin for name, pin in pins.items() if pin.key == key}


def operator_fault(
    pins: Mapping[str, OperatorPin], key: str, now: float, revoked: Collection[str]
) -> str | None:
    """Return why a signature by the key of this fingerprint does not count; None if it does."""
    found = pins_of(pins, key)
    if not found:
        return f"the operator's key is not pinned: {key or 'no signature holds'}"
    names = ", ".join(ascii(name) for name in found)
    if key in revoked:
        return f"the operator {names} was revoked: {key}"
    if all(pin.days_left(now) < 0 for pin in found.values()):
        until = max(pin.until for pin in found.values())
        return (
            f"the pin of the operator {names} ended on {until}: compare the fingerprint, then"
            f" site-agent policy confirm-operator NAME {key}"
        )
    return None
