"""Which privacy guarantee holds at each site after a run, in values and in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from fedfactory.contracts.codec import encode
from fedfactory.contracts.privacy import PrivacyPlan, PrivacySpent
from fedfactory.rounds.history import Round

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


def guarantees(
    plan: PrivacyPlan | None, sites: Iterable[str], rounds: Iterable[Round]
) -> dict[str, Any]:
    """Return summary.json's `privacy`: what was asked, and per site what holds."""
    if plan is None:
        return {"asked": None, "guarantee": NONE, "sites": {}, "assumptions": []}
    newest: dict[str, PrivacySpent] = {}
    for found in rounds:
        for parts in (found.parts, found.evaluations or {}):
            for site, part in parts.items():
                known = newest.get(site)
                if part.privacy and (
                    known is None or part.privacy.epsilon_run >= known.epsilon_run
                ):
                    newest[site] = part.privacy
    return {
        "asked": encode(plan),
        "guarantee": "record-level differential privacy against everybody outside the site",
        "sites": {site: _of_site(newest.get(site)) for site in sites},
        "assumptions": list(ASSUMPTIONS),
    }


def _of_site(spent: PrivacySpent | None) -> Mapping[str, Any] | None:
    """Return one site's guarantee; None for one that released nothing."""
    if spent is None:
        return None
    return {
        "guarantee": f"({spent.epsilon_run:.3f}, {spent.delta:g})-DP per {spent.unit}",
        "epsilon_run": spent.epsilon_run,
        "delta": spent.delta,
        "unit": spent.unit,
        "accountant": spent.accountant,
    }
