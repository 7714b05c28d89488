"""Who belongs to a consortium, as its members and its coordinator say it: values, sent as JSON.

The methods of the service Enrolment, and those of Operations that concern members.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedfactory.contracts.bounds import Seconds, UnixTime
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.revocations import SignedRevocation

MAX_PEM: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteRequest:
    """Invite somebody under a name and role, for `lifetime_s` seconds."""

    role: str
    name: str
    lifetime_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """The small file that an invited daemon or person enrols with, once. Treat it as a password.

    `token` (hex) is the seed of a key that is good for enrolling alone; `certificate` (PEM chain)
    certifies it until `expires_at` (Unix seconds). `authority` is the consortium's (PEM bundle).
    `coordinator_key` and `operator_keys` (name to fingerprint) are what a site pins in its policy.
    """

    consortium: str
    gateway: str
    role: str
    name: str
    token: str
    certificate: str
    authority: str
    coordinator_key: str
    operator_keys: Mapping[str, str]
    expires_at: UnixTime
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersRequest:
    """Everybody who was invited or enrolled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member. Times are Unix seconds; `fingerprint` is that of its key, None before it enrols.

    `connected` is about sites: whether the doorbell is open now; `seen_at` when it last was.
    `reason` tells why one was revoked, or why an enrolled site that calls is turned away.
    """

    role: str
    name: str
    status: Literal["invited", "enrolled", "expired", "revoked"]
    fingerprint: str | None
    version: str | None
    valid_until: UnixTime | None
    connected: bool
    seen_at: UnixTime | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """The consortium's members, by role and name."""

    consortium: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevokeRequest:
    """Cut a member off at once, for a reason that is kept.

    `signed` comes with an operator's that has a key, for the sites that pin it; None for others.
    """

    role: str
    name: str
    reason: str
    signed: SignedRevocation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """What an invited peer asks to be certified: its request (PEM).

    The connection shows the invitation's key, which binds the request to the token.
    """

    csr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewRequest:
    """A new certificate for the key of the one in use; `csr` proves its possession."""

    csr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A certificate with its chain (PEM), and the authorities to trust from now on (PEM bundle).

    The bundle holds cross certificates beside the roots; identity/succession.py judges it.
    """

    certificate: str
    authority: str

    def __post_init__(self) -> None:
        if "BEGIN CERTIFICATE" not in self.certificate or "BEGIN CERT" not in self.authority:
            raise ProtocolError("Certified: expected PEM certificates")
        if max(len(self.certificate), len(self.authority)) > MAX_PEM:
            raise ProtocolError(f"Certified: expected at most {MAX_PEM} characters of PEM")
