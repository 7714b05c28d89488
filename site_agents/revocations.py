"""Operators' keys that others revoked: HOME/revoked-operators.json, which is only added to.

A revocation comes with the gateway's doorbell, which repeats all of them at every connection. One
counts if an operator signed it whose pin counts here now, who was not revoked before, for a key
that the policy pins. So of two operators who revoke each other the one counts that came first: the
other's signature is then worth nothing. Nothing takes one back, and a key has one entry at most: no
more is kept than the policy pins.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, IntegrityError, ProtocolError, UsageError
from fedfactory.contracts.revocations import MAX_REVOCATION, SignedRevocation
from fedfactory.durable_file import write_durably
from fedfactory.identity.signing import verify
from site_agents.audit.entries import administrative
from site_agents.config import POLICY_FILE
from site_agents.policy import operator_fault
from site_agents.policy.facts import shown
from site_agents.policy.pins import day_text, pins_of
from site_agents.policy_file import load_policy
from site_agents.rate import Rate
from site_agents.trusted_file import write_fault

log = logging.getLogger("site_agents.revocations")

REVOKED_FILE: Final = "revoked-operators.json"
MAX_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One revocation that counts here, as it came, so that its signature can be checked again.

    `operator` is the name that the policy pinned the key under, `by` the name of who signed.
    `recorded`: the audit chain has it.
    """

    signed: SignedRevocation
    operator: str
    by: str
    kept_at: float
    recorded: bool

    @property
    def told(self) -> str:
        """Who revoked whom, and when it came, for a person of the site."""
        reason = self.signed.revocation.reason
        why = f": {shown(reason)}" if reason else ""
        return f"'{self.operator}' by '{self.by}' on {day_text(self.kept_at)}{why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    kept: tuple[Kept, ...]


def kept_revocations(home: Path) -> tuple[Kept, ...]:
    """Return what is kept, oldest first.

    Raises:
        IntegrityError: the file does not hold: who was revoked is not known.
    """
    path = home / REVOKED_FILE
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
        if (fault := write_fault(path)) is None:
            return from_json(_File, content).kept
    except FileNotFoundError:
        return ()
    except OSError as error:
        fault = error.strerror or str(error)
    except ProtocolError as error:
        fault = error.public_message
    raise IntegrityError(
        f"{path} does not hold ({fault}): who was revoked is not known, and no order is taken. Mend"
        " it, or put its last copy back; without one, remove it, and the coordinator tells again"
    )


def revoked_keys(home: Path) -> frozenset[str]:
    """Return the fingerprints of the keys that no longer count. Raises IntegrityError."""
    return frozenset(kept.signed.revocation.key for kept in kept_revocations(home))


def kept_of(home: Path, key: str) -> Kept | None:
    """Return the revocation of a key, None if it was not revoked. Raises IntegrityError."""
    found = (kept for kept in kept_revocations(home) if kept.signed.revocation.key == key)
    return next(found, None)


class Revocations:
    """Takes revocations for one site; `record` appends to its audit chain. For any thread."""

    def __init__(
        self,
        home: Path,
        record: Callable[[Mapping[str, Any]], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._home = home
        self._record = record
        self._clock = clock
        self._lock = threading.Lock()
        self._refusals = Rate(time.monotonic)

    def take(self, text: str) -> None:
        """Keep a revocation (JSON) that counts; durable when this returns. Anything else is logged.

        What does not count costs a signature's check; a flood of it is passed over.
        """
        with self._lock:
            try:
                signed = _parse(text)
                kept = kept_revocations(self._home)
                known = [k for k in kept if k.signed.revocation.key == signed.revocation.key]
                if not known and not self._refusals.left:
                    return
                self._keep(kept, known[0] if known else self._judged(signed))
            except (FedfactoryError, OSError) as error:
                if self._refusals.take():
                    log.warning("the revocation of an operator is not taken: %s", error)

    def _judged(self, signed: SignedRevocation) -> Kept:
        """Return a new revocation as it is kept. Raises FedfactoryError if it does not count."""
        told, now = signed.revocation, self._clock()
        policy = load_policy(self._home / POLICY_FILE)
        if told.coordinator not in policy.coordinators:
            raise UsageError(f"no coordinator {shown(told.coordinator)} is pinned")
        pinned = pins_of(policy.operators, told.key)
        if not pinned:
            raise UsageError(f"the key of {shown(told.operator)} is not pinned: {told.key}")
        signer = verify(told, signed.signature)
        if fault := operator_fault(policy.operators, signer, now, revoked_keys(self._home)):
            raise UsageError(f"of its signer: {fault}")
        by = pins_of(policy.operators, signer)
        return Kept(signed=signed, operator=min(pinned), by=min(by), kept_at=now, recorded=False)

    def _keep(self, kept: tuple[Kept, ...], one: Kept) -> None:
        """Write one down, then its line in the audit chain: what restricts counts first."""
        if one not in kept:
            kept = (*kept, one)
            write_durably(self._home / REVOKED_FILE, to_json(_File(kept=kept)))
            log.warning("an operator was revoked: %s", one.told)
        if not one.recorded:
            told = one.signed.revocation
            self._record(
                administrative(
                    "operator_revoked",
                    actor=one.by,
                    operator=one.operator,
                    key=told.key,
                    coordinator=told.coordinator,
                    reason=told.reason,
                    signed_at=told.at,
                )
            )
            whole = tuple(replace(k, recorded=True) if k == one else k for k in kept)
            write_durably(self._home / REVOKED_FILE, to_json(_File(kept=whole)))


def _parse(text: str) -> SignedRevocation:
    if len(text) > MAX_REVOCATION:
        raise ProtocolError(f"a message of {len(text)} characters is no revocation")
    return from_json(SignedRevocation, text)
