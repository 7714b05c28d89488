"""The error tree. What crosses the wire is `public_message`; `diagnostic` stays where it arose."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class FedfactoryError(Exception):
    """Something went wrong that fedfactory knows how to name."""

    exit_code: ClassVar[int] = 1

    def __init__(self, public_message: str | None = None, *, diagnostic: str | None = None) -> None:
        self.public_message = public_message or (self.__doc__ or "").strip().splitlines()[0]
        self.diagnostic = diagnostic
        super().__init__(self.public_message)


class UsageError(FedfactoryError):
    """What was asked for cannot be done as asked: a name, a value, a file of the caller's."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name that is in no table. `hint` says where it is known, for a guess of what was meant."""

    def __init__(
        self, kind: str, found: str, known: Iterable[str], *, hint: str | None = None
    ) -> None:
        names = sorted(known)
        near = get_close_matches(found, names, n=1)
        if hint is None and near:
            hint = f"did you mean '{near[0]}'?"
        end = f"; {hint}" if hint else ""
        super().__init__(f"unknown {kind} '{found}'; known: {', '.join(names)}{end}")


class ValueRangeError(UsageError):
    """A value of the wrong type or out of range, with the key that holds it."""

    def __init__(self, key: str, found: object, expected: str) -> None:
        self.key = key
        super().__init__(f"{key}={_as_written(found)}: expected {expected}")


def _as_written(value: object) -> object:
    """Return a value as a configuration's file says it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else value


class DataError(UsageError):
    """Data that is missing, unreadable or too small for what is asked."""


class IntegrityError(FedfactoryError):
    """Bytes that are not what their digest, header or length says."""


class ProtocolError(FedfactoryError):
    """A message that does not have the agreed form."""


class FieldError(ProtocolError):
    """A value of a message that its field's type forbids.

    `finding` says which field and what its type allows, in our own words: it repeats nothing that
    the sender chose. `found` follows it in the message.
    """

    def __init__(self, finding: str, found: str = "") -> None:
        self.finding = finding
        super().__init__(finding + (f", found {found}" if found else ""))


class IdentityError(FedfactoryError):
    """A peer that is not who it must be to ask for this."""


class EnvironmentFailedError(FedfactoryError):
    """A process or service fedfactory depends on did not start, or died."""


class UnreachableError(EnvironmentFailedError):
    """The coordinator cannot be reached: try again later, or check its address and your network."""

    exit_code = 6


class RefusedError(FedfactoryError):
    """The coordinator, or the sites, do not do what was asked."""

    exit_code = 5


class RunFailedError(FedfactoryError):
    """The run ended without completing its rounds."""

    exit_code = 3


class RunStoppedError(FedfactoryError):
    """The run was stopped on request before its last round."""

    exit_code = 4
