"""Who asks, and whether an order is within its signed plan. Pure; findings stay at the site."""

from __future__ import annotations

import re
from typing import Final

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.plans import OrderEnvelope
from site_agents.policy.facts import Facts, Finding, evaluations, shown, steps_cap
from site_agents.policy.pins import operator_fault
from site_agents.policy.values import Policy

LEAST_LEFT_S: Final = 2.0
# Names end up in logs, in books and on the administrator's screen: no path, no control character.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

# ---- who asks --------------------------------------------------------------------------------


def coordinators(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The key that signed the sending is the one pinned under the name the order carries."""
    name = sending.order.coordinator
    pinned = policy.coordinators.get(name)
    if pinned is None:
        return Finding(f"no coordinator {shown(name)} is pinned")
    if pinned != facts.coordinator_key:
        return Finding(
            f"coordinator {shown(name)} is pinned to another key than signed: "
            + (facts.coordinator_key or "no signature holds")
        )
    return None


def operators(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The key that signed the plan is an operator's, whose pin has not ended, and not revoked."""
    del sending
    fault = operator_fault(policy.operators, facts.operator_key, facts.now, facts.revoked)
    return None if fault is None else Finding(fault)


# ---- is it in form, in time and within the plan ----------------------------------------------


def names(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """Coordinator, run and task have names of letters, digits, dot, dash and underscore."""
    del policy, facts
    order = sending.order
    for key, name in (
        ("coordinator", order.coordinator),
        ("run_id", order.run_id),
        ("task", order.task),
    ):
        if not _NAME.fullmatch(name) or ".." in name:
            return Finding(f"{shown(name)} is no name", f"order.{key}")
    return None


def expires_at(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The coordinator still waits for an answer; private work is begun with time left for it."""
    del policy
    late_s = facts.now - sending.expires_at
    if late_s > 0:
        return Finding(f"it came {late_s:.0f} s after its time")
    begins_privately = sending.order.privacy is not None and not facts.finished
    late = _too_late(sending, facts.now) if begins_privately else None
    return None if late is None else Finding(late)


def _too_late(sending: OrderEnvelope, now: float) -> str | None:
    """Return why private work is not begun at `now` (Unix seconds) for lack of time.

    It is charged whole once begun, and nobody would take its result.
    """
    left_s = sending.expires_at - now
    if left_s >= LEAST_LEFT_S:
        return None
    return f"{max(0.0, left_s):.1f} s are left, private work is begun with {LEAST_LEFT_S:g} or more"


def digest(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The order names the plan it came with."""
    del policy, facts
    if sending.order.terms_digest == digest_of(sending.signed.terms):
        return None
    return Finding("the order names another plan than the one it came with")


def not_after(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The plan has not ended."""
    del policy
    late_s = facts.now - sending.signed.terms.not_after
    return Finding(f"the plan ended {late_s:.0f} s ago") if late_s > 0 else None


def coordinator(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The order and its plan are of one coordinator."""
    del policy, facts
    order, terms = sending.order, sending.signed.terms
    if order.coordinator == terms.coordinator:
        return None
    return Finding(f"the plan is of coordinator {shown(terms.coordinator)}")


def run_id(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The order and its plan are of one run."""
    del policy, facts
    order, terms = sending.order, sending.signed.terms
    return None if order.run_id == terms.run_id else Finding(f"run {shown(order.run_id)}")


def sites(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The order is for this site, and the plan lists it."""
    del policy
    site = sending.order.site
    if site != facts.site:
        return Finding(f"addressed to {shown(site)}, this is {facts.site}")
    return None if site in sending.signed.terms.sites else Finding(f"{site} is not in the plan")


def rounds(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The round is one of the plan's."""
    del policy, facts
    asked, planned = sending.order.round, sending.signed.terms.rounds
    return None if 1 <= asked <= planned else Finding(f"round {asked}, the plan has 1 to {planned}")


def evaluate(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """An evaluation is planned; under differential privacy, one with noise."""
    del policy, facts
    terms = sending.signed.terms
    if sending.order.kind == "train" or evaluations(sending):
        return None
    return Finding(
        "an evaluation without noise, in a run with differential privacy"
        if terms.evaluate
        else "an evaluation, and the plan has none"
    )


def task(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The task is the planned one."""
    del policy, facts
    order, terms = sending.order, sending.signed.terms
    if order.task == terms.task:
        return None
    return Finding(f"task {shown(order.task)}, the plan has {shown(terms.task)}")


def task_parameters(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The task's parameters are the planned ones."""
    del policy, facts
    asked, planned = sending.order.task_parameters, sending.signed.terms.task_parameters
    if digest_of(asked) == digest_of(planned):
        return None
    keys = sorted({*asked, *planned})
    changed = [k for k in keys if digest_of([asked.get(k)]) != digest_of([planned.get(k)])]
    return Finding(f"other task parameters than planned: {shown(', '.join(changed))}")


def training(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """As signed or less work; lr and momentum at most as signed; proximal_mu is the strategy's."""
    del policy, facts
    asked, planned = sending.order.training, sending.signed.terms.training
    if (asked is None) != (sending.order.kind == "evaluate"):
        return Finding("training parameters belong to orders that train, and to them alone")
    if asked is None:
        return None
    against = {
        "local_epochs": asked.local_epochs > planned.local_epochs,
        "batch_size": asked.batch_size != planned.batch_size,
        "max_steps": steps_cap(asked) > steps_cap(planned),
        "lr": asked.lr > planned.lr,
        "momentum": asked.momentum > planned.momentum,
    }
    for key, is_against in against.items():
        if is_against:
            found = f"{key} is {getattr(asked, key)}, the plan has {getattr(planned, key)}"
            return Finding(found, f"plan.training.{key}")
    return None


def initial(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """In sync mode, training in round 1 starts from the signed first model."""
    del policy, facts
    order, terms = sending.order, sending.signed.terms
    # In async mode a site that comes late has its first order from a later model.
    is_first = order.kind == "train" and order.round == 1 and terms.mode == "sync"
    if not is_first or order.base == terms.initial:
        return None
    return Finding(f"round 1 starts from {order.base.digest}, the plan has {terms.initial.digest}")


def privacy(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The privacy asked for is the planned one."""
    del policy, facts
    if sending.order.privacy == sending.signed.terms.privacy:
        return None
    return Finding("another privacy than planned")


def max_model_bytes(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Finding | None:
    """The base model is not larger than planned."""
    del policy, facts
    asked, planned = sending.order.base.bytes, sending.signed.terms.max_model_bytes
    if asked <= planned:
        return None
    return Finding(f"a model of {asked} bytes, the plan has at most {planned}")
