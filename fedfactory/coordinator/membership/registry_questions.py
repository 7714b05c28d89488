"""What the registry answers of its members, and of who holds what: reads alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

from fedfactory.coordinator.membership.registry_rows import rows_of
from fedfactory.coordinator.membership.registry_values import (
    Holder,
    enrolled,
    invited_member,
    revoked,
)
from fedfactory.identity.roles import Role
from fedfactory.wire.membership import Member

MOST_TOLD: Final = 1000  # revocations that a site is told when it connects


def site_names(database: sqlite3.Connection) -> tuple[str, ...]:
    """Return the name of every enrolled site, sorted."""
    return tuple(row["name"] for row in rows_of(database, "members", Role.SITE))


def operator_keys(database: sqlite3.Connection) -> dict[str, str]:
    """Return the key's fingerprint of every enrolled operator, by name."""
    found = rows_of(database, "members", Role.OPERATOR)
    return {row["name"]: row["fingerprint"] for row in found}


def operator_revocations(database: sqlite3.Connection) -> tuple[str, ...]:
    """Return what operators signed of others' keys (JSON), oldest first, no more than MOST_TOLD."""
    found = database.execute(
        "SELECT signed FROM operator_revocations ORDER BY number DESC LIMIT ?", (MOST_TOLD,)
    ).fetchall()
    return tuple(row["signed"] for row in reversed(found))


def everybody(
    database: sqlite3.Connection, now: float, connected: Collection[str]
) -> tuple[Member, ...]:
    """Return everybody, by role and name; `connected` are the sites that are now."""
    people = database.execute("SELECT * FROM members").fetchall()
    waiting = database.execute(
        "SELECT * FROM invitations WHERE used_by IS NULL AND voided IS NULL ORDER BY number"
    ).fetchall()
    cut_off = database.execute("SELECT * FROM revocations").fetchall()
    found = {(row["role"], row["name"]): revoked(row) for row in cut_off}
    for row in waiting:  # the newest last: it counts
        found[row["role"], row["name"]] = invited_member(row, now)
    for row in people:
        key = (row["role"], row["name"])
        other = found.get(key)
        if row["valid_until"] > now or other is None or other.status != "invited":
            is_here = row["role"] == Role.SITE and row["name"] in connected
            found[key] = enrolled(row, now, is_connected=is_here)
    return tuple(found[key] for key in sorted(found))


def holders(database: sqlite3.Connection, now: float) -> tuple[Holder, ...]:
    """Return who holds what that still counts, and which root it rests on.

    A member's certificate is the newest one it was seen with: an answer may be lost.
    """
    found = database.execute(
        "SELECT role, name, min(number), not_after, root FROM ("
        " SELECT c.* FROM certificates c JOIN members m USING (role, name, fingerprint)"
        " WHERE c.not_after > ?1 AND c.number >= coalesce(m.in_use, 0)"
        " UNION SELECT c.number, c.serial, i.role, i.name, c.fingerprint, c.not_after,"
        " c.root, c.issued_at FROM certificates c JOIN invitations i USING (fingerprint)"
        " WHERE c.not_after > ?1 AND i.used_by IS NULL AND i.voided IS NULL AND i.number ="
        " (SELECT max(number) FROM invitations WHERE role = i.role AND name = i.name)"
        ") GROUP BY role, name ORDER BY role, name",
        (now,),
    ).fetchall()
    return tuple(
        Holder(role=row["role"], name=row["name"], not_after=row["not_after"], root=row["root"])
        for row in found
    )
