"""Who is asked in a round. Pure: the same knowledge gives the same choice, in any process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Final

from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.contracts.run_plan import RunPlan, Selection
from fedfactory.rounds.state import RunState

# Failures that pass: asking again may help, and nothing was learned from the data.
PASSING: Final = frozenset({"transfer_failed", "missing_update", "expired", "no_receipt"})
# Failures that may pass, but came after the data was touched: under differential privacy another
# try would be charged again, so nobody tries it by itself.
PASSING_WITHOUT_PRIVACY: Final = frozenset({"worker_lost", "timed_out"})


def passes(code: str, privacy: PrivacyPlan | None) -> bool:
    """Whether a refusal by this code (of REFUSALS) may be followed by an answer if asked again."""
    return code in PASSING or (privacy is None and code in PASSING_WITHOUT_PRIVACY)


def select(state: RunState, number: int) -> tuple[str, ...]:
    """Return the sites to ask to train in round `number`, sorted.

    Required ones are always among them; those that are not connected come last.
    """
    plan = _plan(state)
    rules = plan.rules
    there = [site for site in sorted(plan.terms.sites) if site not in state.left]
    if rules.select == "all" or rules.per_round is None:
        return tuple(there)
    required = [site for site in there if site in rules.required]
    others = [site for site in there if site not in rules.required]
    count = max(0, rules.per_round + rules.extra - len(required))
    rank = RANKS[rules.select](state, number, others)
    others.sort(key=lambda site: (site in state.offline, rank(site), site))
    return tuple(sorted([*required, *others[:count]]))


def evaluators(state: RunState) -> tuple[str, ...]:
    """Return the sites to ask to evaluate: all, or with a selection those in the round's model."""
    plan = _plan(state)
    if plan.rules.select != "all":
        return tuple(s for s in state.sites("train", "accepted") if s not in state.left)
    return tuple(site for site in sorted(plan.terms.sites) if site not in state.left)


Rank = Callable[[str], float]


def _random(state: RunState, number: int, others: list[str]) -> Rank:  # noqa: ARG001
    seed = _plan(state).seed
    return lambda site: draw(seed, number, site)


def _size(state: RunState, number: int, others: list[str]) -> Rank:  # noqa: ARG001
    """Draw without replacement, a site's chance by its examples; who is not known yet comes first.

    Efraimidis and Spirakis 2006, algorithm A: the largest u ** (1 / weight).
    """
    seed = _plan(state).seed

    def rank(site: str) -> float:
        if site not in state.examples:
            return -math.inf
        weight = max(1, state.examples[site])
        return -math.log(draw(seed, number, site)) / weight

    return rank


def _availability(state: RunState, number: int, others: list[str]) -> Rank:  # noqa: ARG001
    """Put first who answered most often when asked; who was never asked counts as reliable."""

    def rank(site: str) -> float:
        missed = state.missed.get(site, 0)
        asked = missed + state.gave.get(site, 0)
        return missed / asked if asked else 0.0

    return rank


def _round_robin(state: RunState, number: int, others: list[str]) -> Rank:
    plan = _plan(state)
    assert plan.rules.per_round is not None
    step = plan.rules.per_round + plan.rules.extra - len(plan.rules.required)
    begin = (number - 1) * step
    places = {site: place for place, site in enumerate(others)}
    return lambda site: (places[site] - begin) % len(places)


RANKS: Final[Mapping[Selection, Callable[[RunState, int, list[str]], Rank]]] = {
    "random": _random,
    "size": _size,
    "availability": _availability,
    "round_robin": _round_robin,
}


def draw(seed: int, number: int, site: str) -> float:
    """Return a number above 0 and below 1 that depends on (seed, round, site) alone."""
    text = f"fedfactory selection\0{seed}\0{number}\0{site}".encode()
    found = int.from_bytes(hashlib.sha256(text).digest()[:7])  # 56 bits; 52 fill a float's mantissa
    return ((found >> 4) + 0.5) / 2**52


def _plan(state: RunState) -> RunPlan:
    assert state.plan is not None
    return state.plan
