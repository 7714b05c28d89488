"""Who was invited, enrolled, certified and cut off: the consortium's register (SQLite).

Every question of a caller's standing is answered from here, anew for each call. Safe from several
threads and processes: each change is one transaction, durable when the method returns.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    IdentityError,
    UnknownNameError,
    UsageError,
)
from fedfactory.contracts.revocations import SignedRevocation
from fedfactory.coordinator.membership import registry_questions as questions
from fedfactory.coordinator.membership import registry_rows as rows
from fedfactory.coordinator.membership.registry_rows import ASK_AGAIN, Issued, Newcomer
from fedfactory.coordinator.membership.registry_schema import PUT_BACK, open_database
from fedfactory.coordinator.membership.registry_values import Holder
from fedfactory.identity.facts import CertificateFacts
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import fingerprint
from fedfactory.wire.membership import Member

log = logging.getLogger("fedfactory.coordinator")

REGISTRY_FILE: Final = "registry.sqlite"
INVITED_AS: Final = (Role.SITE, Role.OPERATOR, Role.VIEWER)


class Registry:
    """The registry at `path`, begun there if there is none. `clock` gives Unix seconds.

    Raises:
        UsageError: the file is of another version or damaged.
        EnvironmentFailedError: it cannot be opened; from each method: it cannot be read or written,
            or is damaged.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._path = path
        self._database = open_database(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    # ---- invitations and enrolment --------------------------------------------------------------

    def invite(self, peer: Peer, issued: Issued, *, by: str) -> None:
        """Write down an invitation; `issued` is the certificate of its token's key.

        An earlier invitation of the same name no longer counts.

        Raises:
            UsageError: a role that nobody is invited to, or a member that is in good standing.
        """
        if peer.role not in INVITED_AS:
            raise UsageError(f"nobody is invited as {peer.role}: expected {', '.join(INVITED_AS)}")
        now = self._clock()
        with self._change() as database:
            member = rows.member_of(database, peer)
            if member is not None and member["valid_until"] > now:
                raise UsageError(
                    f"{peer.role} '{peer.name}' is enrolled already; if its key was lost,"
                    f" `fedfactory revoke {peer.name}` first"
                )
            (last,) = database.execute(
                "SELECT coalesce(max(number), 0) FROM invitations"
            ).fetchone()
            mark = fingerprint(issued.facts.public_key)
            database.execute(
                "INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (mark, last + 1, peer.role, peer.name, by, now, issued.facts.not_after),
            )
            rows.write_certificate(database, Peer(role=Role.INVITED, name=peer.name), issued, now)

    def accept(
        self,
        invitation_key: str,
        key: str,
        certify: Callable[[Peer], Issued],
        version: str | None = None,
    ) -> Peer:
        """Use up an invitation for the holder of `key`; exactly one key ever wins it.

        `invitation_key` (PEM) is the one of the caller's connection; `key` (PEM) the one to be
        certified; `certify(peer)` makes the certificate, inside the transaction that admits. Asked
        again with the same key, before it expires, it certifies again: an answer may be lost.

        Raises:
            IdentityError: the invitation is unknown, used, expired, replaced or withdrawn; the key
                belongs or belonged to somebody.
        """
        now, mark, token_mark = self._clock(), fingerprint(key), fingerprint(invitation_key)
        with self._change() as database:
            peer = rows.invited(database, token_mark, mark, now)
            newcomer = Newcomer(peer=peer, fingerprint=mark)
            rows.check_new(database, newcomer)
            issued = certify(peer)
            rows.write_member(database, newcomer, issued, version, now)
            rows.write_certificate(database, peer, issued, now)
            database.execute(
                "UPDATE invitations SET used_by = ? WHERE fingerprint = ?", (mark, token_mark)
            )
            database.execute(
                "DELETE FROM revocations WHERE role = ? AND name = ?", (peer.role, peer.name)
            )
        return peer

    def enlist(self, peer: Peer, issued: Issued) -> None:
        """Write down a member that was made without an invitation, by who holds the issuer's key.

        Raises:
            UsageError: the name is taken.
        """
        now = self._clock()
        mark = fingerprint(issued.facts.public_key)
        newcomer = Newcomer(peer=peer, fingerprint=mark)
        with self._change() as database:
            if rows.member_of(database, peer) is not None:
                raise UsageError(f"{peer.role} '{peer.name}' is enrolled already")
            rows.write_member(database, newcomer, issued, None, now)
            rows.write_certificate(database, peer, issued, now)

    def renewed(self, peer: Peer, issued: Issued, version: str | None = None) -> None:
        """Write down that a member's key was certified again.

        Raises:
            IdentityError: the member was cut off meanwhile, or has another key now.
        """
        now = self._clock()
        with self._change() as database:
            rows.check_current(database, peer, fingerprint(issued.facts.public_key))
            database.execute(
                "UPDATE members SET valid_until = max(valid_until, ?),"
                " version = coalesce(?, version)"
                " WHERE role = ? AND name = ?",
                (issued.facts.not_after, version, peer.role, peer.name),
            )
            rows.write_certificate(database, peer, issued, now)

    def revoke(
        self, peer: Peer, *, by: str, reason: str, signed: SignedRevocation | None = None
    ) -> None:
        """Cut a member off, and withdraw its invitations. Its key is never taken again.

        `signed` is what sites are told of an operator's present key.

        Raises:
            UnknownNameError: nobody of that role has that name.
            UsageError: a coordinator, the last operator in good standing, one who is cut off; or
                `signed` is of another key.
        """
        if peer.role not in INVITED_AS:
            raise UsageError(f"a {peer.role} cannot be revoked")
        now = self._clock()
        with self._change() as database:
            member = rows.member_of(database, peer)
            open_ones = database.execute(
                "SELECT count(*) FROM invitations WHERE role = ? AND name = ?"
                " AND used_by IS NULL AND voided IS NULL",
                (peer.role, peer.name),
            ).fetchone()[0]
            if member is None and not open_ones:
                rows.check_not_cut_off(database, peer)
                known = [row["name"] for row in rows.rows_of(database, "members", peer.role)]
                others = [
                    role
                    for role in INVITED_AS
                    if rows.member_of(database, Peer(role=role, name=peer.name)) is not None
                ]
                hint = f"there is {others[0]} '{peer.name}': --role {others[0]}" if others else None
                raise UnknownNameError(str(peer.role), peer.name, known, hint=hint)
            if member is not None and peer.role is Role.OPERATOR:
                rows.check_not_last(database, peer, now)
            if signed is not None and (
                member is None or member["fingerprint"] != signed.revocation.key
            ):
                raise UsageError(
                    f"what is signed is not of the present key of {peer.role} '{peer.name}'"
                )
            if member is not None:
                rows.remove_member(database, member, now, reason)
            if signed is not None:
                rows.write_operator_revocation(database, signed)
            database.execute(
                "UPDATE invitations SET voided = ? WHERE role = ? AND name = ? AND used_by IS NULL",
                (reason, peer.role, peer.name),
            )
            database.execute(
                "INSERT OR REPLACE INTO revocations VALUES (?, ?, ?, ?, ?)",
                (peer.role, peer.name, now, by, reason),
            )

    # ---- questions ------------------------------------------------------------------------------

    def standing(self, peer: Peer, facts: CertificateFacts) -> None:
        """Check that a caller may be heard now: `facts` are those of its certificate.

        Raises:
            IdentityError: the certificate was not made here, has ended, or was cut off; the
                sentence says which, and what to do.
        """
        now = self._clock()
        with self._read() as database:
            row = database.execute(
                "SELECT number, role, name, fingerprint, not_after FROM certificates"
                " WHERE serial = ?",
                (facts.serial,),
            ).fetchone()
            if row is None or (row["role"], row["name"]) != (peer.role, peer.name):
                raise IdentityError("this certificate is not in the consortium's registry")
            if min(row["not_after"], facts.not_after) <= now:
                raise IdentityError(f"this certificate has ended: {ASK_AGAIN}")
            if peer.role is Role.INVITED:
                rows.check_invitation(database, row["fingerprint"], now)
            else:
                member = rows.check_current(database, peer, row["fingerprint"])
                if (member["in_use"] or 0) < row["number"]:
                    self._put_in_use(peer, row["number"])

    def sites(self) -> tuple[str, ...]:
        """Return the name of every enrolled site, sorted."""
        with self._read() as database:
            return questions.site_names(database)

    def operators(self) -> dict[str, str]:
        """Return the key's fingerprint of every enrolled operator, by name."""
        with self._read() as database:
            return questions.operator_keys(database)

    def operator_revocations(self) -> tuple[str, ...]:
        """Return what operators signed of others' keys (JSON), oldest first, the newest 1000."""
        with self._read() as database:
            return questions.operator_revocations(database)

    def seen(self, site: str) -> None:
        """Write down that a site is connected, or was until now."""
        with self._change() as database:
            database.execute(
                "UPDATE members SET seen_at = ? WHERE role = ? AND name = ?",
                (self._clock(), Role.SITE, site),
            )

    def members(self, connected: Collection[str] = ()) -> tuple[Member, ...]:
        """Return everybody, by role and name; `connected` are the sites that are now."""
        with self._read() as database:
            return questions.everybody(database, self._clock(), connected)

    def holders(self) -> tuple[Holder, ...]:
        """Return who holds what that still counts, and which root it rests on."""
        with self._read() as database:
            return questions.holders(database, self._clock())

    def _put_in_use(self, peer: Peer, number: int) -> None:
        with self._change() as database:
            database.execute(
                "UPDATE members SET in_use = ? WHERE role = ? AND name = ?",
                (number, peer.role, peer.name),
            )

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                yield self._database
        except sqlite3.OperationalError as error:
            raise EnvironmentFailedError(
                "the consortium's registry cannot be read or written", diagnostic=str(error)
            ) from error
        except sqlite3.DatabaseError as error:  # told to callers, too: where it lies is our own
            log.error("%s is damaged (%s): %s", self._path, error, PUT_BACK)  # noqa: TRY400
            raise EnvironmentFailedError(
                f"the consortium's registry is damaged: {PUT_BACK}", diagnostic=str(error)
            ) from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._read() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                    database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")
