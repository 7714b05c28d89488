"""What this site allows, whatever a signed plan says. Pure; findings stay at the site."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

from fedfactory.contracts.plans import OrderEnvelope
from fedfactory.privacy.delta import delta_fault
from site_agents.policy.facts import Facts, Finding, evaluations, shown, steps_cap
from site_agents.policy.holds import DAY_S
from site_agents.policy.values import TRAINING_KEYS, Policy

# ---- what this site allows -------------------------------------------------------------------


def tasks(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The task is allowed here."""
    del facts
    task = sending.order.task
    return None if task in policy.tasks else Finding(f"task {shown(task)} is not allowed")


def task_parameters(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The task's parameters are in the ranges given for them."""
    del facts
    order = sending.order
    rule = policy.tasks.get(order.task)
    if rule is None:
        return None  # that the task is not allowed at all is another clause's
    for name, allowed in rule.parameters.items():
        value = order.task_parameters.get(name)
        if not allowed.accepts(value):
            return Finding(
                f"{name} is {shown(str(value))}, allowed is {allowed.expected()}",
                f"tasks.{order.task}.parameters.{name}",
            )
    return None


def training(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The training parameters are in the ranges given for them."""
    del facts
    training = sending.order.training
    if training is None:
        return None
    for name in TRAINING_KEYS:
        value, allowed = getattr(training, name), policy.training.get(name)
        if allowed is not None and not allowed.accepts(value):
            return Finding(
                f"{name} is {value}, allowed is {allowed.expected()}", f"training.{name}"
            )
    return None


def strategies(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The run's strategy is allowed here; a custom one goes by its class."""
    del facts
    name = sending.signed.terms.strategy_name
    if policy.strategies is None or name in policy.strategies:
        return None
    return Finding(f"strategy {shown(name)} is not allowed")


def privacy_dp(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The run asks for differential privacy, unless the site allows runs without it."""
    del facts
    if policy.dp_required and sending.order.privacy is None:
        return Finding("differential privacy is required, the run asks for none")
    return None


def privacy_delta(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The run's delta is at most the site's, and below one in the data set's public size."""
    del facts
    plan = sending.order.privacy
    if plan is None:
        return None
    if plan.delta > policy.delta:
        return Finding(f"delta {plan.delta:g} is weaker than the policy's {policy.delta:g}")
    source = policy.source_for(sending.order.task)
    if source is None:
        return None  # that the task is not allowed at all is another clause's
    size = policy.data[source].public_size
    fault = delta_fault(plan.delta, size, size=f"{size} units of data.{source}")
    return None if fault is None else Finding(f"delta {fault}")


def privacy_epsilon(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The epsilon that the run aims at is not above the cap, which the ledger holds anyway."""
    del facts
    plan = sending.order.privacy
    if plan is None or plan.target_epsilon is None:
        return None
    if plan.target_epsilon <= policy.epsilon_per_run:
        return None
    return Finding(f"epsilon {plan.target_epsilon:g} is above {policy.epsilon_per_run:g} a run")


def privacy_evaluations(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The plan has no more evaluations than allowed."""
    del facts
    planned, allowed = evaluations(sending), policy.max_evaluations
    if planned <= allowed:
        return None
    return Finding(f"the plan has up to {planned} evaluations, allowed are {allowed}")


def limits_rounds(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The plan has no more rounds than allowed."""
    del facts
    planned, allowed = sending.signed.terms.rounds, policy.rounds
    if planned <= allowed:
        return None
    return Finding(f"the plan has {planned} rounds, allowed are {allowed}")


def limits_plan_days(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The plan ends soon enough: until then its run may hold privacy budget."""
    left, allowed = (sending.signed.terms.not_after - facts.now) / DAY_S, policy.holds.plan_days
    if left <= allowed:
        return None
    return Finding(f"the plan ends in {left:.1f} days, allowed are {allowed:g}")


def limits_model_bytes(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The base model is not larger than allowed."""
    del facts
    size, allowed = sending.order.base.bytes, policy.max_model_bytes
    return None if size <= allowed else Finding(f"a model of {size} bytes, allowed are {allowed}")


def limits_hours(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """It is an hour at which orders are taken; what is done leaves at any hour."""
    del sending
    hours, minute = policy.hours, facts.local_minute
    if hours is None or hours.holds(minute) or facts.finished:
        return None
    clock = f"{minute // 60:02d}:{minute % 60:02d}"
    return Finding(f"it is {clock} in {hours.time_zone}, orders are taken {hours.text()}")


def limits_gpu_hours(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The run has GPU-hours left here; what is done leaves whatever it took."""
    del sending
    used, allowed = facts.gpu_hours_of_run, policy.gpu_hours_per_run
    if used < allowed or facts.finished:
        return None
    return Finding(f"the run has used {used:.2f} GPU-hours here, allowed are {allowed:g}")


# Under differential privacy the true count may decide nothing that a coordinator can see.


def min_examples(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """Without differential privacy: enough records."""
    order, rule = sending.order, policy.without_dp
    count = facts.train_examples if order.kind == "train" else facts.evaluate_examples
    if rule is None or order.privacy is not None or count is None or count >= rule.min_examples:
        return None
    return Finding(
        f"{count} records to {order.kind} on, without differential privacy at least"
        f" {rule.min_examples}"
    )


def min_local_steps(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """Without differential privacy: enough local steps."""
    order, rule, count = sending.order, policy.without_dp, facts.train_examples
    if rule is None or order.privacy is not None or order.training is None or count is None:
        return None
    training = order.training
    whole = training.local_epochs * math.ceil(count / training.batch_size)
    steps = int(min(whole, steps_cap(training)))
    if steps >= rule.min_local_steps:
        return None
    return Finding(
        f"{steps} local steps, without differential privacy at least {rule.min_local_steps}"
    )


def limits_base(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The base model's numbers are finite, and no larger than allowed for their tensor."""
    del sending
    for name, largest in (facts.base or {}).items():
        if not math.isfinite(largest):
            return Finding(f"tensor {shown(name)} holds NaN or infinity")
        for pattern, allowed in policy.max_base_abs.items():
            if largest > allowed and fnmatchcase(name, pattern):
                return Finding(
                    f"tensor {shown(name)} holds {largest:g}, allowed is up to {allowed:g}",
                    f"limits.max_base_abs.{pattern}",
                )
    return None
