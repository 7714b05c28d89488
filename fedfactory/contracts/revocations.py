"""What an operator signs so that no site counts another operator's key any more. Values only.

It is for good: a key that was cut off never comes back, so there is nothing that undoes it, and
one that comes again changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.bounds import UnixTime, check_fields
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.plans import Signature

MOST_REASON: Final = 300  # characters
MAX_REVOCATION: Final = 8192  # characters of one, signed, as JSON
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorRevocation:
    """The key of this fingerprint signs no longer for `operator`, of a coordinator's consortium.

    `at` is Unix seconds, by the clock of who signs.

    Raises:
        ProtocolError: a name, fingerprint, reason or time out of bounds.
    """

    coordinator: str
    operator: str
    key: str
    reason: str
    at: UnixTime

    def __post_init__(self) -> None:
        if not (_NAME.fullmatch(self.coordinator) and _NAME.fullmatch(self.operator)):
            raise ProtocolError("OperatorRevocation: coordinator or operator is no name")
        if not _FINGERPRINT.fullmatch(self.key):
            raise ProtocolError("OperatorRevocation.key: expected sha256:<64 hex digits>")
        if len(self.reason) > MOST_REASON:
            raise ProtocolError(f"OperatorRevocation.reason: longer than {MOST_REASON} characters")
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRevocation:
    """The revocation under the signature of the operator who revokes."""

    revocation: OperatorRevocation
    signature: Signature
