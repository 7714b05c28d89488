"""What an examination finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how it stands with `area`. `todo` says what to do about it; "" where it is ok."""

    level: Level
    area: str
    text: str
    todo: str = ""


def ok(area: str, text: str) -> Finding:
    """All is well."""
    return Finding("ok", area, text)


def warn(area: str, text: str, todo: str) -> Finding:
    """It works, though perhaps not as meant."""
    return Finding("warn", area, text, todo)


def fail(area: str, text: str, todo: str) -> Finding:
    """The agent cannot work like this."""
    return Finding("fail", area, text, todo)
