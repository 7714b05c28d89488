"""The operators whose signature counts: a key each, until a day, and who compared it. Pure.

A pin is of a key: a certificate that is renewed for the same key stays pinned. When it has ended,
or its key was revoked, no plan that the key signed counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final

DATE: Final = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")


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
        return (date.fromisoformat(self.until) - _day(now)).days


def is_date(text: str) -> bool:
    """Whether a text names a day of the calendar, as YYYY-MM-DD."""
    try:
        return DATE.fullmatch(text) is not None and bool(date.fromisoformat(text))
    except ValueError:
        return False


def day_text(now: float) -> str:
    """Return the day at Unix time `now`, in UTC.

    >>> day_text(1_800_000_000.0)
    '2027-01-15'
    """
    return _day(now).isoformat()


def _day(now: float) -> date:
    return datetime.fromtimestamp(now, UTC).date()


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
