"""What an order may cost: the plan of its run against the lineage's history. Pure.

A run's first order admits all of it or nothing: a plan that cannot fit is refused before any data
is touched. The noise is the site's own: the least that keeps the run's target, the policy's caps
and all that was spent and held before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedfactory.contracts.orders import Order, TrainParameters
from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.privacy import Measurement, Mechanism, PrivacyPlan
from fedfactory.privacy.accounting import (
    Accountant,
    Charges,
    Cost,
    Limits,
    epsilon_of,
    fits,
    joined,
    least_noise,
)
from fedfactory.privacy.budget import Budget, Run
from fedfactory.privacy.delta import delta_fault
from fedfactory.privacy.entries import Charge, RunAdmitted, RunKey
from fedfactory.privacy.sampling import evaluation_size, sampling
from fedfactory.tasks.rehearsal import Rehearsal, evaluation_rehearsal, training_rehearsal
from site_agents.policy import DataRule, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """What the site's policy allows one run and a lineage's whole history."""

    epsilon_per_run: float
    epsilon_per_lineage: float
    epsilon_held: float = math.inf  # by all open runs of one coordinator


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """Why a plan is not admitted. `finding` stays at the site."""

    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stake:
    """What the policy says of the data an order works on, and of its budget, as it is now."""

    lineage: str
    unit: str
    public_size: int
    caps: Caps
    refuses_unbounded: bool


def stake_of(policy: Policy, rule: DataRule) -> Stake:
    """Return what a policy says of one of its data sets and its budget."""
    share = policy.holds.hold_share * policy.epsilon_per_lineage
    caps = Caps(
        epsilon_per_run=policy.epsilon_per_run,
        epsilon_per_lineage=policy.epsilon_per_lineage,
        epsilon_held=max(policy.epsilon_per_run, share),
    )
    return Stake(
        lineage=rule.lineage,
        unit=rule.unit,
        public_size=rule.public_size,
        caps=caps,
        refuses_unbounded=policy.holds.unbounded_lineage == "refuse",
    )


def next_entry(
    budget: Budget,
    accountant: Accountant,
    order: Order,
    terms: RunTerms,
    *,
    stake: Stake,
    now: float,
) -> RunAdmitted | Charge | Shortfall:
    """Return what the ledger takes next for an order under differential privacy.

    Its run's admission while the run is not admitted, then what the order itself reserves; or why
    neither may be.
    """
    held = budget.runs.get(run_of(order))
    if obstacle := _obstacle(budget, stake) or _mismatch(held, order, stake):
        return Shortfall(finding=obstacle)
    if held is None:
        return admit(
            budget,
            accountant,
            order,
            terms,
            lineage=stake.lineage,
            unit=stake.unit,
            public_size=stake.public_size,
            caps=stake.caps,
            now=now,
        )
    if held.lapsed:
        return readmit(budget, accountant, order, caps=stake.caps, now=now)
    return charge_of(
        budget, accountant, order, public_size=stake.public_size, caps=stake.caps, now=now
    )


def _mismatch(held: Run | None, order: Order, stake: Stake) -> str | None:
    """Return why an order is not of the run as it was admitted; None if it is, or none was."""
    if held is None:
        return None
    if (held.lineage, held.unit) != (stake.lineage, stake.unit):
        return (
            f"the run was admitted on lineage '{held.lineage}' per {held.unit}, and its"
            f" epsilon is of that; policy.yaml now has '{stake.lineage}' per {stake.unit}"
        )
    if held.terms_digest != order.terms_digest:
        return "the run was admitted by another plan"
    return "the run is over, and what it held has returned" if held.released else None


def _obstacle(budget: Budget, stake: Stake) -> str | None:
    """Return why no run at all is taken on a lineage; None if runs are."""
    if stake.lineage not in budget.deltas:
        return f"lineage '{stake.lineage}' has no budget: 'site-agent policy check' says what to do"
    size = f"the public size of {stake.public_size}"
    if fault := delta_fault(budget.deltas[stake.lineage], stake.public_size, size=size):
        return f"the delta of lineage '{stake.lineage}', which never changes, {fault}"
    if stake.refuses_unbounded and (left := budget.unprotected.get(stake.lineage)):
        return (
            f"{left.updates} updates left lineage '{stake.lineage}' without differential privacy,"
            " and privacy.unbounded_lineage is 'refuse'"
        )
    return None


def run_of(order: Order) -> RunKey:
    """Return the run that an order is part of."""
    return RunKey(coordinator=order.coordinator, run_id=order.run_id)


def admit(
    budget: Budget,
    accountant: Accountant,
    order: Order,
    terms: RunTerms,
    *,
    lineage: str,
    unit: str,
    public_size: int,
    caps: Caps,
    now: float,
) -> RunAdmitted | Shortfall:
    """Plan a whole run and return the entry that holds it, or why it does not fit."""
    assert terms.privacy is not None
    run = run_of(order)
    planned = plan_charges(
        accountant,
        terms.privacy,
        terms.training,
        rounds=terms.rounds,
        evaluate=terms.evaluate,
        public_size=public_size,
        others=budget.others(lineage, run, now),
        limits=limits_of(terms.privacy, caps, budget.deltas[lineage]),
    )
    if isinstance(planned, Shortfall):
        return Shortfall(finding=f"lineage '{lineage}': {planned.finding}")
    wanted = joined(*({charge.cost: charge.steps} for charge in planned))
    if too_much := _holds_too_much(
        budget, accountant, run, lineage, wanted, most=caps.epsilon_held, now=now
    ):
        return Shortfall(finding=too_much)
    return RunAdmitted(
        run=run,
        terms_digest=order.terms_digest,
        lineage=lineage,
        unit=unit,
        planned=planned,
        expires_at=terms.not_after,
    )


def readmit(
    budget: Budget, accountant: Accountant, order: Order, *, caps: Caps, now: float
) -> RunAdmitted | Shortfall:
    """Hold what is left of a lapsed run's plan again, at its own noise, or say why it is not."""
    assert order.privacy is not None
    run = run_of(order)
    before = budget.runs[run]
    left, limits = before.left(), limits_of(order.privacy, caps, budget.deltas[before.lineage])
    others = budget.others(before.lineage, run, now)
    why = None
    if not fits(accountant, joined(before.spent, left), others, limits):
        why = f"what is left of its plan no longer fits lineage '{before.lineage}'"
    why = why or _holds_too_much(
        budget, accountant, run, before.lineage, left, most=caps.epsilon_held, now=now
    )
    if why is not None:
        return Shortfall(
            finding=f"no order of the run came for days, what it held has lapsed, and {why}: a new"
            " run from its model is planned anew"
        )
    return RunAdmitted(
        run=run,
        terms_digest=before.terms_digest,
        lineage=before.lineage,
        unit=before.unit,
        planned=before.planned,
        expires_at=before.expires_at,
    )


def _holds_too_much(
    budget: Budget,
    accountant: Accountant,
    run: RunKey,
    lineage: str,
    wanted: Charges,
    *,
    most: float,
    now: float,
) -> str | None:
    """Return why a run's coordinator may not hold `wanted` beside what its open runs hold."""
    held = budget.held(lineage, now, but=run, coordinator=run.coordinator)
    epsilon = epsilon_of(accountant, joined(held, wanted), budget.deltas[lineage])
    if not held or epsilon <= most:
        return None
    return (
        f"the open runs of coordinator '{run.coordinator}' would hold epsilon {epsilon:.3g} of"
        f" lineage '{lineage}', and one holds at most {most:g} (privacy.hold_share)"
    )


def plan_charges(
    accountant: Accountant,
    plan: PrivacyPlan,
    training: TrainParameters,
    *,
    rounds: int,
    evaluate: bool,
    public_size: int,
    others: Charges,
    limits: Limits,
) -> tuple[Charge, ...] | Shortfall:
    """Return all charges of a run of `rounds`, its training first; or why they do not fit.

    `others` is what the lineage has spent and holds beside this run.
    """
    once = sampling(training, public_size)
    steps = once.steps * rounds
    evaluations = _evaluations(plan, rounds if evaluate else 0)
    beside: Charges = {c.cost: c.steps for c in evaluations}
    noise = plan.noise_multiplier
    if noise is None:
        noise = least_noise(
            accountant,
            sample_rate=once.sample_rate,
            steps=steps,
            beside=beside,
            others=others,
            limits=limits,
        )
    else:
        asked = {Cost(noise_multiplier=noise, sample_rate=once.sample_rate): steps}
        if not fits(accountant, joined(beside, asked), others, limits):
            noise = None
    if noise is None:
        return Shortfall(
            finding=f"{steps} steps at sampling rate {once.sample_rate:.4g} do not fit epsilon"
            f" {limits.run:g} for the run and {limits.lineage:g} for the lineage at delta"
            f" {limits.delta:g}, with what is spent and held"
        )
    cost = Cost(noise_multiplier=noise, sample_rate=once.sample_rate)
    return (Charge(cost=cost, steps=steps), *evaluations)


def limits_of(plan: PrivacyPlan, caps: Caps, delta: float) -> Limits:
    """Return what a run must keep: its own target and the site's caps.

    `delta` is the lineage's; a run that asks for a smaller one keeps its target at that.
    """
    return Limits(
        run=min(caps.epsilon_per_run, plan.target_epsilon or caps.epsilon_per_run),
        run_delta=min(plan.delta, delta),
        lineage=caps.epsilon_per_lineage,
        delta=delta,
    )


def charge_of(
    budget: Budget,
    accountant: Accountant,
    order: Order,
    *,
    public_size: int,
    caps: Caps,
    now: float,
) -> Charge | Shortfall:
    """Return what one order of an admitted run reserves, or why it may not."""
    assert order.privacy is not None
    run = run_of(order)
    admitted = budget.runs[run]
    if order.training is None:
        if len(admitted.planned) == 1:
            return Shortfall(finding="the plan holds nothing for evaluations")
        charge = Charge(cost=admitted.planned[1].cost, steps=1)
    else:
        once = sampling(order.training, public_size)
        cost = admitted.planned[0].cost
        if once.sample_rate != cost.sample_rate:
            return Shortfall(finding="the order samples at another rate than its run was held for")
        charge = Charge(cost=cost, steps=once.steps)
    limits = limits_of(order.privacy, caps, budget.deltas[admitted.lineage])
    if not budget.may_reserve(accountant, run, charge, limits, now):
        return Shortfall(
            finding=f"{charge.steps} more steps would pass epsilon {limits.run:g} for the run or"
            f" {limits.lineage:g} for lineage '{admitted.lineage}'"
        )
    return charge


def rehearsal_of_order(order: Order, public_size: int) -> Rehearsal:
    """Return what is tried of an order under differential privacy, before it is paid for."""
    assert order.privacy is not None
    if order.training is None:
        return evaluation_rehearsal(evaluation_size(public_size))
    return training_rehearsal(sampling(order.training, public_size), order.privacy.grad_sample_mode)


def mechanism_of(order: Order, charge: Charge, public_size: int) -> Mechanism | None:
    """Return what the worker executes for a `train` order; None for `evaluate`."""
    if order.training is None or order.privacy is None:
        return None
    return Mechanism(
        noise_multiplier=charge.cost.noise_multiplier,
        sample_rate=charge.cost.sample_rate,
        steps=charge.steps,
        expected_batch=sampling(order.training, public_size).expected_batch,
        clip_norm_l2=order.privacy.clip_norm_l2,
        grad_sample_mode=order.privacy.grad_sample_mode,
    )


def measurement_of(order: Order, charge: Charge, public_size: int) -> Measurement | None:
    """Return what the worker executes for an `evaluate` order; None for `train`."""
    if order.training is not None or order.privacy is None:
        return None
    return Measurement(
        noise_multiplier=charge.cost.noise_multiplier,
        loss_clip=order.privacy.evaluation_loss_clip,
        public_examples=evaluation_size(public_size),
    )


def _evaluations(plan: PrivacyPlan, rounds: int) -> tuple[Charge, ...]:
    if rounds == 0 or plan.evaluation_noise_multiplier is None:
        return ()
    # Everybody of the test split is in every evaluation.
    cost = Cost(noise_multiplier=plan.evaluation_noise_multiplier, sample_rate=1.0)
    return (Charge(cost=cost, steps=rounds),)
