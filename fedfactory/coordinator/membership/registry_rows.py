"""What the registry reads and writes inside one transaction, and what it refuses there."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import IdentityError, UsageError
from fedfactory.contracts.revocations import SignedRevocation
from fedfactory.identity.facts import CertificateFacts
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import fingerprint

ASK_AGAIN: Final = "ask the consortium for a new invitation"
# Ended certificates are remembered for so long, in seconds, to answer questions about them.
_KEPT_S: Final = 400 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that was made: its facts, and the fingerprint of the root it rests on."""

    facts: CertificateFacts
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """Who an invitation admits: a peer, and its key's fingerprint."""

    peer: Peer
    fingerprint: str


def rows_of(database: sqlite3.Connection, table: str, role: str) -> list[Any]:
    """Return the rows of a table that have a role, by name."""
    return database.execute(
        f"SELECT * FROM {table} WHERE role = ? ORDER BY name",  # noqa: S608 - our own table's name
        (role,),
    ).fetchall()


def member_of(database: sqlite3.Connection, peer: Peer) -> Any:
    """Return a member's row, None if there is none."""
    return database.execute(
        "SELECT * FROM members WHERE role = ? AND name = ?", (peer.role, peer.name)
    ).fetchone()


def check_current(database: sqlite3.Connection, peer: Peer, mark: str) -> Any:
    """Return the row of a member whose key it is now. Raises IdentityError if it is not."""
    member = member_of(database, peer)
    if member is not None and member["fingerprint"] == mark:
        return member
    former = database.execute(
        "SELECT reason FROM former_keys WHERE fingerprint = ?", (mark,)
    ).fetchone()
    why = f" ({former['reason']})" if former is not None and former["reason"] else ""
    raise IdentityError(f"{peer.role} '{peer.name}' was cut off with this key{why}: {ASK_AGAIN}")


def check_invitation(database: sqlite3.Connection, token_mark: str, now: float) -> Any:
    """Return the invitation's row if it counts; used ones do, for the key that used them."""
    row = database.execute(
        "SELECT *, (SELECT max(number) FROM invitations n WHERE n.role = i.role"
        " AND n.name = i.name) AS newest FROM invitations i WHERE fingerprint = ?",
        (token_mark,),
    ).fetchone()
    if row is None:
        raise IdentityError(f"this invitation is not in the consortium's registry: {ASK_AGAIN}")
    if row["voided"] is not None:
        raise IdentityError(f"this invitation was withdrawn: {ASK_AGAIN}")
    if row["number"] != row["newest"]:
        raise IdentityError("this invitation was replaced by a newer one: use that")
    if row["expires_at"] <= now:
        raise IdentityError(f"this invitation has expired: {ASK_AGAIN}")
    return row


def invited(database: sqlite3.Connection, token_mark: str, mark: str, now: float) -> Peer:
    """Return who an invitation invites, if it counts for the key `mark`. Raises IdentityError."""
    row = check_invitation(database, token_mark, now)
    if row["used_by"] not in (None, mark):
        raise IdentityError(
            f"this invitation was used already, at another time or place: {ASK_AGAIN}, and if it"
            " was not you, tell them"
        )
    peer = Peer(role=Role(row["role"]), name=row["name"])
    if row["used_by"] is not None:
        check_current(database, peer, mark)
    return peer


def check_new(database: sqlite3.Connection, newcomer: Newcomer) -> None:
    """Check that the key is nobody else's, and was nobody's; raises IdentityError."""
    peer = newcomer.peer
    if database.execute(
        "SELECT 1 FROM former_keys WHERE fingerprint = ?1 UNION"
        " SELECT 1 FROM invitations WHERE fingerprint = ?1 UNION"
        " SELECT 1 FROM members WHERE fingerprint = ?1 AND NOT (role = ?2 AND name = ?3)",
        (newcomer.fingerprint, peer.role, peer.name),
    ).fetchone():
        raise IdentityError("this key is, or was, a member's: make a new one")


def write_member(
    database: sqlite3.Connection,
    newcomer: Newcomer,
    issued: Issued,
    version: str | None,
    now: float,
) -> None:
    """Write a member; a name that had another key gives that up."""
    peer = newcomer.peer
    before = member_of(database, peer)
    if before is not None and before["fingerprint"] != newcomer.fingerprint:
        remove_member(database, before, now, "enrolled anew")
    database.execute(
        "INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, NULL, NULL)"
        " ON CONFLICT (role, name) DO UPDATE SET"
        " valid_until = max(valid_until, excluded.valid_until), version = excluded.version",
        (
            peer.role,
            peer.name,
            newcomer.fingerprint,
            version,
            now,
            issued.facts.not_after,
        ),
    )


def remove_member(database: sqlite3.Connection, member: Any, now: float, reason: str) -> None:
    """Take a member away; its key is never taken again."""
    role, name = member["role"], member["name"]
    database.execute("DELETE FROM members WHERE role = ? AND name = ?", (role, name))
    database.execute(
        "INSERT INTO former_keys VALUES (?, ?, ?, ?, ?)",
        (member["fingerprint"], role, name, now, reason),
    )


def write_operator_revocation(database: sqlite3.Connection, signed: SignedRevocation) -> None:
    """Write what an operator signed of another's key, for sites to be told."""
    database.execute(
        "INSERT INTO operator_revocations VALUES (NULL, ?, ?)",
        (signed.revocation.key, to_json(signed)),
    )


def write_certificate(database: sqlite3.Connection, peer: Peer, issued: Issued, now: float) -> None:
    """Write a certificate that was made, and forget those that ended long ago."""
    facts = issued.facts
    mark = fingerprint(facts.public_key)
    database.execute(
        "INSERT INTO certificates VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
        (facts.serial, peer.role, peer.name, mark, facts.not_after, issued.root, now),
    )
    database.execute("DELETE FROM certificates WHERE not_after < ?", (now - _KEPT_S,))


def check_not_last(database: sqlite3.Connection, peer: Peer, now: float) -> None:
    """Check that another operator is in good standing. Raises UsageError."""
    others = database.execute(
        "SELECT 1 FROM members WHERE role = ? AND name != ? AND valid_until > ?",
        (Role.OPERATOR, peer.name, now),
    ).fetchone()
    if others is None:
        raise UsageError(
            f"'{peer.name}' is the last operator: enrol another one first, or nobody could"
        )


def check_not_cut_off(database: sqlite3.Connection, peer: Peer) -> None:
    """Check that a name was not revoked before. Raises UsageError."""
    row = database.execute(
        "SELECT reason FROM revocations WHERE role = ? AND name = ?", (peer.role, peer.name)
    ).fetchone()
    if row is not None:
        raise UsageError(f"{peer.role} '{peer.name}' is cut off already ({row['reason']})")
