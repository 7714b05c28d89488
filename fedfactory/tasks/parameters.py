"""The schema of a task's parameters: a choice of names, a range of whole numbers, or a text.

Values live in `conf/`, so none has a default here: an order names every parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedfactory.contracts.errors import UnknownNameError, ValueRangeError
from fedfactory.contracts.orders import Scalar


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    def accepts(self, value: Scalar) -> bool:
        """Whether `value` is one of the names."""
        return value in self.names

    def expected(self) -> str:
        """Say what is accepted."""
        return "one of " + ", ".join(self.names)


@dataclass(frozen=True, slots=True)
class WholeNumber:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    def accepts(self, value: Scalar) -> bool:
        """Whether `value` is an int (not a bool) in range."""
        return type(value) is int and self.low <= value <= self.high

    def expected(self) -> str:
        """Say what is accepted."""
        return f"a whole number from {self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Text:
    """A text that the task itself reads, of the given form."""

    form: str
    max_length: int

    def accepts(self, value: Scalar) -> bool:
        """Whether `value` is a text that is short enough to read."""
        return isinstance(value, str) and len(value) <= self.max_length

    def expected(self) -> str:
        """Say what is accepted."""
        return f"a text of the form {self.form}"


Parameter = Choice | WholeNumber | Text


def check_parameters(
    schema: Mapping[str, Parameter], found: Mapping[str, Scalar]
) -> Mapping[str, Scalar]:
    """Return `found` unchanged if it has exactly the schema's keys with accepted values.

    Raises:
        ValueRangeError: a value is missing, of the wrong type or out of range ('task.model').
        UnknownNameError: a key that the schema does not have.
    """
    for key in found:
        if key not in schema:
            raise UnknownNameError(
                "task parameter", f"task.{brief(key)}", (f"task.{k}" for k in schema)
            )
    for key, parameter in schema.items():
        if not parameter.accepts(found.get(key)):
            raise ValueRangeError(f"task.{key}", brief(found.get(key)), parameter.expected())
    return found


def brief(value: object) -> str:
    """Return a value as text for an error: what arrives from outside may be of any length."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
