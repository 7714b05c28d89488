"""What is written into the audit chain, and under which names. Pure.

Times are the chain's own. Nothing here comes from records: digests, sizes, names, and the numbers
that left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fedfactory.contracts.codec import digest_of, encode
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.privacy import PrivacyStanding
from fedfactory.contracts.updates import Refusal, Update

MAX_TEXT: Final = 300


def released(
    update: Update,
    *,
    destination: str,
    delivery: int,
    lineage: str | None,
    epsilon_charged: float | None,
    policy: str,
    clause: str,
    actor: str,
    standing: PrivacyStanding | None = None,
) -> dict[str, Any]:
    """Return the entry for an update that is about to leave.

    `destination` is the identity it goes to (a key's fingerprint), `policy` the version (digest) of
    the policy file that let it go and `clause` the clause, `actor` is "agent" or who approved.
    `epsilon_charged` is what this work took from the lineage; None without differential privacy.
    `standing` leaves beside the update.
    """
    blob = update.payload.blob if update.payload else None
    return {
        "event": "released",
        "digest": blob.digest if blob else None,
        "bytes": blob.bytes if blob else 0,
        "update": digest_of(update),
        "metrics": dict(update.metrics),
        "examples": update.examples,
        "lineage": lineage,
        "epsilon_charged": epsilon_charged,
        **_work(update.work),
        "destination": destination,
        "delivery": delivery,
        "policy": policy,
        "clause": clause,
        "actor": actor,
        **_standing(standing),
    }


def _standing(standing: PrivacyStanding | None) -> dict[str, Any]:
    return {} if standing is None else {"standing": encode(standing)}


def refused(
    refusal: Refusal,
    *,
    destination: str,
    delivery: int,
    finding: str,
    standing: PrivacyStanding | None = None,
) -> dict[str, Any]:
    """Return the entry for a refusal that is about to leave: its code and `standing` cross.

    `destination` is the coordinator's name as the order gives it, `finding` why; it stays here.
    Nobody may have signed what is refused: its texts are cut to MAX_TEXT characters.
    """
    entry = {
        "event": "refused",
        "code": refusal.code,
        "finding": finding,
        **_work(refusal.work),
        "destination": destination,
        "delivery": delivery,
        "actor": "agent",
        **_standing(standing),
    }
    return {name: v[:MAX_TEXT] if isinstance(v, str) else v for name, v in entry.items()}


def answered(
    question: str, *, about: str, said: str, coordinator: str, run_id: str
) -> dict[str, Any]:
    """Return the entry for the answer that is about to leave to the question of this digest.

    `about` is "plan" or "logs", `said` the code, or how much of the record leaves. Nobody may have
    signed the question: its texts are cut to MAX_TEXT characters.
    """
    return {
        "event": "answered",
        "question": question,
        "about": about,
        "said": said,
        "coordinator": coordinator[:MAX_TEXT],
        "run": run_id[:MAX_TEXT],
        "actor": "agent",
    }


def unauthorised(
    counts: Mapping[str, int], *, first: str, last: str, finding: str
) -> dict[str, Any]:
    """Return the entry for messages that nobody pinned has signed, counted by kind.

    `first` and `last` are when they came (in the form of the chain's own times), `finding` is what
    spoke against the first.
    """
    return {
        "event": "unauthorised",
        "count": sum(counts.values()),
        "kinds": dict(counts),
        "first": first,
        "last": last,
        "finding": ascii(finding)[1:-1][:MAX_TEXT],
        "actor": "agent",
    }


def administrative(event: str, *, actor: str, **details: Any) -> dict[str, Any]:
    """Return the entry for what a person or the agent decided: "paused", "lineage_opened" ..."""
    return {**encode(details), "event": event, "actor": actor}


def recovered(line: int, notice: str) -> dict[str, Any]:
    """Return the entry for what a crash left behind line `line`, and what was done about it."""
    return administrative("recovered", actor="agent", line=line, notice=notice)


def _work(work: WorkKey) -> Mapping[str, Any]:
    return {
        "coordinator": work.coordinator,
        "run": work.run_id,
        "round": work.round,
        "kind": work.kind,
        "order": work.order_digest,
    }
