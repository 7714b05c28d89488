"""How a site's privacy budget stands: what each lineage has spent, holds and has left. Pure.

Epsilons of parts do not add up, so `held` and `left` are differences of epsilons of sums: what the
lineage would stand at if all that is held were spent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedfactory.privacy.accounting import Accountant, epsilon_of, joined
from fedfactory.privacy.budget import Budget
from fedfactory.privacy.entries import Entry, RunKey


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageStanding:
    """One lineage, as epsilons at its delta (None: never opened, nothing spent with privacy).

    `cap` and `left` are None where no policy says. `left` is None, too, where updates left without
    privacy: `unprotected_updates`, the last at `unprotected_at` (Unix seconds). Then no epsilon
    bounds what is known of its records.
    """

    lineage: str
    delta: float | None
    cap: float | None
    spent: float
    held: float
    left: float | None
    unprotected_updates: int
    unprotected_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStanding:
    """One run: the epsilon of what it reserved, and its noisy steps, reserved and still held."""

    run: RunKey
    lineage: str
    epsilon: float
    steps_spent: int
    steps_held: int
    expires_at: float
    released: bool
    lapsed: bool


def lineages(
    budget: Budget, accountant: Accountant, cap: float | None, now: float
) -> tuple[LineageStanding, ...]:
    """Return how each lineage stands, by name."""
    names = sorted({*budget.deltas, *budget.unprotected})
    return tuple(_lineage(budget, accountant, name, cap, now) for name in names)


def _lineage(
    budget: Budget, accountant: Accountant, name: str, cap: float | None, now: float
) -> LineageStanding:
    delta, charges = budget.deltas.get(name), budget.spendings.get(name, {})
    spent = whole = 0.0
    if delta is not None:
        spent = epsilon_of(accountant, charges, delta)
        whole = epsilon_of(accountant, joined(charges, budget.held(name, now)), delta)
    without = budget.unprotected.get(name)
    return LineageStanding(
        lineage=name,
        delta=delta,
        cap=cap,
        spent=spent,
        held=whole - spent,
        left=None if cap is None or without else max(0.0, cap - whole),
        unprotected_updates=without.updates if without else 0,
        unprotected_at=without.last_at if without else None,
    )


def runs(budget: Budget, accountant: Accountant, now: float) -> tuple[RunStanding, ...]:
    """Return how each admitted run stands, in the order of their admission."""
    return tuple(
        RunStanding(
            run=key,
            lineage=run.lineage,
            epsilon=budget.epsilon_run(accountant, key),
            steps_spent=sum(run.spent.values()),
            steps_held=sum(run.held(now).values()),
            expires_at=run.expires_at,
            released=run.released,
            lapsed=run.lapsed,
        )
        for key, run in budget.runs.items()
    )


def course(
    entries: Iterable[Entry], accountant: Accountant, lineage: str, every: int
) -> tuple[float, ...]:
    """Return the epsilon that a lineage had spent after each `every` entries, and at the end."""
    budget, found, since = Budget(), [], 0
    for entry in entries:
        budget.apply(entry)
        since += 1
        if since == every:
            found.append(_spent(budget, accountant, lineage))
        since %= every
    return (*found, _spent(budget, accountant, lineage)) if since else tuple(found)


def _spent(budget: Budget, accountant: Accountant, lineage: str) -> float:
    if lineage not in budget.deltas:
        return 0.0
    return epsilon_of(accountant, budget.spendings[lineage], budget.deltas[lineage])
