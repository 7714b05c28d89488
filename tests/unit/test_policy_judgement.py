"""Every clause decides: one change to an order that is allowed, and the clause that refuses it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import OrderEnvelope, RunTerms, SignedOrder
from fedfactory.contracts.refusals import REFUSALS
from site_agents.policy import Facts, Hours, OneOf, Policy, Range, needs_approval
from site_agents.policy.holds import DAY_S
from tests.policy_judge import CLAUSES, judge
from tests.policy_orders import (
    BASE,
    FACTS,
    NOW,
    OPERATOR_KEY,
    POLICY,
    PRIVACY,
    TERMS,
    TRAINING,
    UNSIGNED,
    WITHOUT_DP,
    open_terms,
    sending_of,
)

OPEN = replace(POLICY, without_dp=WITHOUT_DP)
LARGE = replace(POLICY, delta=0.01)  # data of 1000 units


def changed(base: Policy | RunTerms | Facts, **changes: object):
    return replace(base, **changes)


def planned(**changes: object) -> RunTerms:
    return replace(TERMS, **changes)


def test_an_order_within_its_plan_and_the_policy_is_allowed():
    assert judge(POLICY, sending_of(), FACTS).code is None
    assert judge(POLICY, sending_of(kind="evaluate", training=None), FACTS).code is None
    assert judge(OPEN, sending_of(open_terms()), FACTS).code is None


def test_less_work_than_planned_is_allowed_and_a_strategy_may_change_the_step():
    for training in (
        replace(TRAINING, local_epochs=1),
        replace(TRAINING, max_steps=3),
        replace(TRAINING, lr=0.05, momentum=0.0, proximal_mu=0.2),
    ):
        assert judge(POLICY, sending_of(training=training), FACTS).code is None


def clause_of(key: str) -> str:
    """The clause of the exact key that a verdict names."""
    if key in {clause.clause for clause in CLAUSES}:
        return key
    if key.startswith("order."):
        return "order.names"
    if key.startswith("limits.max_base_abs."):
        return "limits.max_base_abs"
    return "tasks.parameters" if key.startswith("tasks.") else key.rpartition(".")[0]


OTHER_BASE = BlobRef(digest="sha256:" + "d" * 64, bytes=400_000)
# key of the deciding clause -> (policy, sending, facts) that differ in one thing from what is
# allowed. Every clause has at least one; a test holds the two lists together.
CASES: list[tuple[str, Policy, OrderEnvelope, Facts]] = [
    ("coordinators", changed(POLICY, coordinators={}), sending_of(), FACTS),
    ("coordinators", POLICY, sending_of(coordinator="other"), FACTS),
    ("coordinators", POLICY, sending_of(), changed(FACTS, coordinator_key=OPERATOR_KEY)),
    ("coordinators", POLICY, sending_of(), changed(FACTS, coordinator_key="")),
    ("operators", changed(POLICY, operators={}), sending_of(), FACTS),
    ("operators", POLICY, sending_of(), changed(FACTS, operator_key="")),
    ("order.run_id", POLICY, sending_of(run_id="../../etc/cron.d/x"), FACTS),
    ("order.run_id", POLICY, sending_of(run_id="a..b"), FACTS),
    ("order.run_id", POLICY, sending_of(run_id=""), FACTS),
    ("order.run_id", POLICY, sending_of(run_id="x\n2026 all is well"), FACTS),
    ("order.run_id", POLICY, sending_of(run_id="x" * 129), FACTS),
    ("order.task", POLICY, sending_of(task="../digits"), FACTS),
    (
        "order.coordinator",
        changed(POLICY, coordinators={"/lead": FACTS.coordinator_key}),
        sending_of(coordinator="/lead"),
        FACTS,
    ),
    ("sending.expires_at", POLICY, replace(sending_of(), expires_at=NOW - 0.5), FACTS),
    ("plan.digest", POLICY, sending_of(terms_digest="sha256:" + "a" * 64), FACTS),
    ("plan.not_after", POLICY, sending_of(planned(not_after=NOW - 1)), FACTS),
    (
        "plan.coordinator",
        changed(POLICY, coordinators={**POLICY.coordinators, "second": FACTS.coordinator_key}),
        sending_of(coordinator="second"),
        FACTS,
    ),
    ("plan.run_id", POLICY, sending_of(run_id="20261121-0802-beef"), FACTS),
    ("plan.sites", POLICY, sending_of(site="lumi"), FACTS),
    ("plan.sites", POLICY, sending_of(planned(sites=("lumi",))), FACTS),
    ("plan.rounds", POLICY, sending_of(round=6), FACTS),
    ("plan.rounds", POLICY, sending_of(round=0), FACTS),
    ("plan.rounds", POLICY, sending_of(round=-1), FACTS),
    (
        "plan.evaluate",
        POLICY,
        sending_of(planned(evaluate=False), kind="evaluate", training=None),
        FACTS,
    ),
    (
        "plan.evaluate",
        POLICY,
        sending_of(
            planned(privacy=replace(PRIVACY, evaluation_noise_multiplier=None)),
            kind="evaluate",
            training=None,
        ),
        FACTS,
    ),
    ("plan.task", POLICY, sending_of(planned(task="echo"), task="digits"), FACTS),
    ("plan.task_parameters", POLICY, sending_of(task_parameters={"model": "mlp"}), FACTS),
    (
        "plan.task_parameters",
        POLICY,
        sending_of(task_parameters={**TERMS.task_parameters, "extra": 1}),
        FACTS,
    ),
    (
        "plan.task_parameters",
        POLICY,
        sending_of(task_parameters={"model": "mlp", "hidden": 32.0}),
        FACTS,
    ),
    ("plan.training", POLICY, sending_of(training=None), FACTS),
    ("plan.training", POLICY, sending_of(kind="evaluate"), FACTS),
    (
        "plan.training.local_epochs",
        POLICY,
        sending_of(training=replace(TRAINING, local_epochs=3)),
        FACTS,
    ),
    (
        "plan.training.batch_size",
        POLICY,
        sending_of(training=replace(TRAINING, batch_size=16)),
        FACTS,
    ),
    (
        "plan.training.max_steps",
        POLICY,
        sending_of(planned(training=replace(TRAINING, max_steps=5)), training=TRAINING),
        FACTS,
    ),
    ("plan.training.lr", POLICY, sending_of(training=replace(TRAINING, lr=0.11)), FACTS),
    (
        "plan.training.momentum",
        POLICY,
        sending_of(training=replace(TRAINING, momentum=0.91)),
        FACTS,
    ),
    ("plan.privacy", POLICY, sending_of(privacy=None), FACTS),
    ("plan.privacy", POLICY, sending_of(privacy=replace(PRIVACY, clip_norm_l2=2.0)), FACTS),
    (
        "plan.max_model_bytes",
        POLICY,
        sending_of(base=BlobRef(digest=BASE.digest, bytes=500_001)),
        FACTS,
    ),
    ("plan.initial", POLICY, sending_of(base=OTHER_BASE), FACTS),
    ("plan.initial", POLICY, sending_of(base=replace(BASE, bytes=399_999)), FACTS),
    ("tasks", POLICY, sending_of(planned(task="echo")), FACTS),
    (
        "tasks.digits.parameters.hidden",
        POLICY,
        sending_of(planned(task_parameters={"model": "mlp", "hidden": 65})),
        FACTS,
    ),
    (
        "tasks.digits.parameters.hidden",
        POLICY,
        sending_of(planned(task_parameters={"model": "mlp", "hidden": True})),
        FACTS,
    ),
    (
        "tasks.digits.parameters.model",
        POLICY,
        sending_of(planned(task_parameters={"model": "../mlp", "hidden": 8})),
        FACTS,
    ),
    (
        "tasks.digits.parameters.model",
        POLICY,
        sending_of(planned(task_parameters={"hidden": 8})),
        FACTS,
    ),
    (
        "training.local_epochs",
        POLICY,
        sending_of(planned(training=replace(TRAINING, local_epochs=5))),
        FACTS,
    ),
    ("training.lr", POLICY, sending_of(planned(training=replace(TRAINING, lr=1.5))), FACTS),
    ("strategies", changed(POLICY, strategies=("fedprox",)), sending_of(), FACTS),
    (
        "strategies",
        changed(POLICY, strategies=("custom", "fedavg")),
        sending_of(planned(strategy="custom", strategy_options={"_target_": "a.FedAvg"})),
        FACTS,
    ),
    ("privacy.dp", POLICY, sending_of(open_terms()), FACTS),
    (
        "privacy.delta",
        POLICY,
        sending_of(planned(privacy=replace(PRIVACY, delta=1e-4))),
        FACTS,
    ),
    (
        "privacy.epsilon_per_run",
        POLICY,
        sending_of(planned(privacy=replace(PRIVACY, target_epsilon=3.1))),
        FACTS,
    ),
    ("privacy.max_evaluations", changed(POLICY, max_evaluations=4), sending_of(), FACTS),
    ("limits.rounds", changed(POLICY, rounds=4), sending_of(), FACTS),
    ("privacy.delta", LARGE, sending_of(planned(privacy=replace(PRIVACY, delta=1e-3))), FACTS),
    ("limits.plan_days", POLICY, sending_of(planned(not_after=NOW + 32 * DAY_S)), FACTS),
    ("limits.max_model_bytes", changed(POLICY, max_model_bytes=399_999), sending_of(), FACTS),
    (
        "limits.hours",
        changed(POLICY, hours=Hours(start=1200, end=360, time_zone="UTC")),
        sending_of(),
        FACTS,
    ),
    ("limits.gpu_hours_per_run", POLICY, sending_of(), changed(FACTS, gpu_hours_of_run=2.0)),
    ("privacy.min_examples", OPEN, sending_of(open_terms()), changed(FACTS, train_examples=99)),
    (
        "privacy.min_examples",
        OPEN,
        sending_of(open_terms(), kind="evaluate", training=None),
        changed(FACTS, evaluate_examples=99),
    ),
    (
        "privacy.min_local_steps",
        OPEN,
        sending_of(open_terms(), training=replace(TRAINING, max_steps=3)),
        FACTS,
    ),
    ("limits.max_base_abs", POLICY, sending_of(), replace(FACTS, base={"w": math.inf})),
    ("limits.max_base_abs", POLICY, sending_of(), replace(FACTS, base={"w": math.nan})),
    (
        "limits.max_base_abs.*",
        changed(POLICY, max_base_abs={"*": 1.0, "w": 3.0}),
        sending_of(),
        replace(FACTS, base={"w": 2.0}),
    ),
    (
        "limits.max_base_abs.fc*",
        changed(POLICY, max_base_abs={"*": 3.0, "fc*": 1.0}),
        sending_of(round=2, base=OTHER_BASE),
        replace(FACTS, base={"w": 2.0, "fc1.weight": 2.0}),
    ),
]


@pytest.mark.parametrize(
    ("key", "policy", "sending", "facts"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
@pytest.mark.rule("45")
def test_one_thing_wrong_is_refused_by_its_clause(key, policy, sending, facts):
    verdict = judge(policy, sending, facts)
    assert verdict.clause == key
    assert verdict.code == next(c.code for c in CLAUSES if c.clause == clause_of(key))
    assert verdict.finding


def test_an_order_may_start_from_another_model_where_the_run_has_one_by_then():
    assert judge(POLICY, sending_of(round=2, base=OTHER_BASE), FACTS).code is None
    measured = sending_of(kind="evaluate", training=None, base=OTHER_BASE)
    assert judge(POLICY, measured, FACTS).code is None
    late = sending_of(planned(mode="async"), base=OTHER_BASE)
    assert judge(POLICY, late, FACTS).code is None


def test_base_values_up_to_the_bound_of_their_tensor_are_allowed():
    policy = replace(POLICY, max_base_abs={"w": 2.0, "fc*": 1.0})
    known = replace(FACTS, base={"w": 2.0, "fc1": 1.0, "other": 1e30})
    assert judge(policy, sending_of(), known).code is None


def test_a_custom_strategy_goes_by_its_class():
    policy = replace(POLICY, strategies=("flwr.serverapp.strategy.FedAdam",))
    options = {"_target_": "flwr.serverapp.strategy.FedAdam", "eta": 0.1}
    custom = planned(strategy="custom", strategy_options=options)
    assert judge(policy, sending_of(custom), FACTS).code is None
    # A named strategy is no class, whatever its options say.
    named = planned(strategy="fedavg", strategy_options=options)
    assert judge(policy, sending_of(named), FACTS).code == "policy_strategy"


def test_true_is_not_one():
    """Nor is 1 true: a parameter's type is part of its value."""
    assert not OneOf((1, "a")).accepts(True)
    assert not OneOf((True,)).accepts(1)
    assert OneOf((1, True)).accepts(True)
    assert not Range(0, 2).accepts(True)
    assert not Range(0, 2).accepts("1")
    assert not Range(0, 2).accepts(None)


def test_every_clause_is_tried_above():
    assert {clause_of(case[0]) for case in CASES} == {clause.clause for clause in CLAUSES}


def test_every_code_of_a_clause_is_a_refusal_that_the_wire_knows():
    assert {clause.code for clause in CLAUSES} <= REFUSALS.keys()


def test_what_is_done_leaves_at_any_hour_and_whatever_it_took():
    """Asked again, or approved in the morning: it was begun when it was allowed."""
    policy = replace(POLICY, hours=Hours(start=1200, end=360, time_zone="UTC"))
    late = replace(FACTS, gpu_hours_of_run=2.5)
    assert judge(policy, sending_of(), late).code == "policy_limits"
    assert judge(policy, sending_of(), replace(late, finished=True)).code is None
    # Everything else still holds against it: a policy that was tightened keeps it here.
    tighter = replace(policy, tasks={})
    assert judge(tighter, sending_of(), replace(late, finished=True)).code == "policy_task"


def test_under_differential_privacy_the_true_count_decides_nothing():
    few = replace(FACTS, train_examples=1, evaluate_examples=1)
    assert judge(OPEN, sending_of(), few) == judge(OPEN, sending_of(), FACTS)


def test_a_finding_shows_a_coordinators_text_cut_and_escaped():
    name = "x\x1b[2J\n" + "y" * 5000
    finding = judge(POLICY, sending_of(coordinator=name), FACTS).finding
    assert finding.isascii()
    assert finding.isprintable()
    assert len(finding) < 200


def test_a_field_that_nobody_knows_is_no_order():
    delivery = SignedOrder(envelope=sending_of(), signature=UNSIGNED)
    text = to_json(delivery)
    assert from_json(SignedOrder, text) == delivery
    with pytest.raises(ProtocolError, match="unknown sudo"):
        from_json(SignedOrder, text.replace('"seed":7', '"seed":7,"sudo":true'))
    with pytest.raises(ProtocolError, match=r"local_epochs: expected a number from 1"):
        from_json(SignedOrder, text.replace('"local_epochs":2', '"local_epochs":0'))


@pytest.mark.parametrize(
    ("egress", "round_number", "before", "asked"),
    [
        ("automatic", 1, False, False),
        ("automatic", 5, False, False),
        ("every_round", 1, True, True),
        ("every_round", 5, True, True),
        ("first_round", 1, False, True),
        ("first_round", 3, False, True),  # a coordinator that skips rounds does not get past it
        ("first_round", 3, True, False),
        ("final_only", 4, False, False),
        ("final_only", 5, False, True),
        ("final_only", 5, True, True),
    ],
)
def test_when_a_person_is_asked(egress, round_number, before, asked):
    policy = replace(POLICY, egress=egress)
    sending = sending_of(round=round_number)
    assert needs_approval(policy, sending, approved_before=before) is asked


def test_the_version_of_a_policy_changes_with_what_it_says():
    assert POLICY.version == replace(POLICY).version
    assert POLICY.version != replace(POLICY, rounds=11).version
