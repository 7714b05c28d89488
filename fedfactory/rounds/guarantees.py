"""Which privacy guarantee holds at each site after a run, in values and in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedfactory.contracts.codec import encode
from fedfactory.contracts.privacy import PrivacyPlan, PrivacyStanding, no_bound
from fedfactory.rounds.events import ReplyAccepted, ReplyRefused

NONE: Final = (
    "no differential privacy: updates can reveal or memorise records, and no confidentiality of"
    " records is claimed"
)
ASSUMPTIONS: Final = (
    "neighbouring data sets: one privacy unit at one site replaced by null",
    "each site's declared public size is public, and holds for its data",
    "per site: for a unit held at several sites, epsilons and deltas add up",
    "this run alone: what a site's lineage spent before and elsewhere is in the site's own ledger",
    "noise and sampling from ChaCha20 keyed by each site's operating system",
    "float64 Gaussians, sums of four, are taken as continuous",
    "a record's gradient is taken not to depend, by rounding, on the others in its batch",
    "participation, timing and sizes are not hidden",
)


def with_standing(
    known: Mapping[str, PrivacyStanding], event: ReplyAccepted | ReplyRefused
) -> Mapping[str, PrivacyStanding]:
    """Return what each site says holds, after one more answer of one; epsilon never falls."""
    found, before = _standing(event), known.get(event.site)
    if found is None or (before is not None and found.epsilon_run < before.epsilon_run):
        return known
    return {**known, event.site: found}


def _standing(event: ReplyAccepted | ReplyRefused) -> PrivacyStanding | None:
    """Return what an answer says holds; an update that says no more counts by itself."""
    if event.standing is not None or isinstance(event, ReplyRefused):
        return event.standing
    spent = event.update.privacy
    if spent is None:
        return None
    return PrivacyStanding(
        epsilon_run=spent.epsilon_run,
        delta=spent.delta,
        unit=spent.unit,
        accountant=spent.accountant,
        unprotected_updates=0,
        unprotected_on=None,
    )


def guarantees(
    plan: PrivacyPlan | None, sites: Iterable[str], standings: Mapping[str, PrivacyStanding]
) -> dict[str, Any]:
    """Return summary.json's `privacy`: what was asked, and per site what holds."""
    if plan is None:
        return {"asked": None, "guarantee": NONE, "sites": {}, "assumptions": []}
    return {
        "asked": encode(plan),
        "guarantee": "record-level differential privacy against everybody outside the site",
        "sites": {site: _of_site(standings.get(site)) for site in sites},
        "assumptions": list(ASSUMPTIONS),
    }


def _of_site(found: PrivacyStanding | None) -> Mapping[str, Any] | None:
    """Return one site's guarantee; None for one that answered nothing of its records."""
    if found is None:
        return None
    guarantee = f"({found.epsilon_run:.3f}, {found.delta:g})-DP per {found.unit}"
    if found.unprotected_on is not None:
        said = no_bound(found.unprotected_updates, found.unprotected_on)
        guarantee = f"{guarantee} by this run alone; of its population, {said}"
    return {
        "guarantee": guarantee,
        "epsilon_run": found.epsilon_run,
        "delta": found.delta,
        "unit": found.unit,
        "accountant": found.accountant,
        "unprotected_updates": found.unprotected_updates,
        "unprotected_on": found.unprotected_on,
    }
