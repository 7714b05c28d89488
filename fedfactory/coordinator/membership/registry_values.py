"""The registry's rows as what operators are told of members. Pure: the time comes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedfactory.wire.membership import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds an unexpired certificate, or invitation, and under which root (fingerprint)."""

    role: str
    name: str
    not_after: float
    root: str


def enrolled(row: Mapping[str, Any], now: float, *, is_connected: bool) -> Member:
    """Return the member of a row of `members`."""
    return Member(
        role=row["role"],
        name=row["name"],
        status="enrolled" if row["valid_until"] > now else "expired",
        fingerprint=row["fingerprint"],
        version=row["version"],
        valid_until=row["valid_until"],
        connected=is_connected,
        seen_at=now if is_connected else row["seen_at"],
        reason="",
    )


def invited_member(row: Mapping[str, Any], now: float) -> Member:
    """Return the member of a row of `invitations` that is not used."""
    is_over = row["expires_at"] <= now
    return Member(
        role=row["role"],
        name=row["name"],
        status="expired" if is_over else "invited",
        fingerprint=None,
        version=None,
        valid_until=row["expires_at"],
        connected=False,
        seen_at=None,
        reason="the invitation was not used in time" if is_over else "",
    )


def revoked(row: Mapping[str, Any]) -> Member:
    """Return the member of a row of `revocations`."""
    return Member(
        role=row["role"],
        name=row["name"],
        status="revoked",
        fingerprint=None,
        version=None,
        valid_until=None,
        connected=False,
        seen_at=None,
        reason=row["reason"],
    )
