"""What a run and an order may cost: the plan whole or not at all, and each order within it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order, TrainParameters
from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.privacy.accounting import Cost, epsilon_of
from fedfactory.privacy.budget import Budget
from fedfactory.privacy.entries import (
    Charge,
    Created,
    LineageOpened,
    RunAdmitted,
    RunReleased,
    WorkReserved,
)
from fedfactory.privacy.sampling import evaluation_size, sampling
from site_agents.accountant import RdpAccounting
from site_agents.admission import (
    Caps,
    Shortfall,
    admit,
    charge_of,
    measurement_of,
    mechanism_of,
    run_of,
)

LINEAGE, DELTA, SIZE, NOW, LATER = "patients", 1e-5, 1000, 100.0, 1000.0
CAPS = Caps(epsilon_per_run=3.0, epsilon_per_lineage=5.0)
TRAINING = TrainParameters(
    local_epochs=1, batch_size=80, lr=0.1, momentum=0.9, proximal_mu=0.0, max_steps=None
)
PLAN = PrivacyPlan(
    target_epsilon=2.0,
    noise_multiplier=None,
    delta=DELTA,
    clip_norm_l2=1.5,
    grad_sample_mode="hooks",
    evaluation_noise_multiplier=30.0,
    evaluation_loss_clip=5.0,
)
KNOWN = {}
ACCOUNTANT = RdpAccounting(KNOWN.get, KNOWN.__setitem__)


def order(run="run-1", number=1, *, privacy=PLAN, training=TRAINING):
    return Order(
        coordinator="lead",
        run_id=run,
        round=number,
        kind="train" if training else "evaluate",
        site="cesga",
        task="tabular",
        task_parameters={},
        training=training,
        base=BlobRef(digest="sha256:" + "0" * 64, bytes=1),
        seed=1,
        privacy=privacy,
        terms_digest="plan",
    )


def terms(*, rounds=10, privacy=PLAN, evaluate=True):
    return RunTerms(
        coordinator="lead",
        run_id="run-1",
        sites=("cesga",),
        task="tabular",
        task_parameters={},
        initial=BlobRef(digest="sha256:" + "0" * 64, bytes=1),
        strategy="fedavg",
        strategy_options={},
        mode="sync",
        training=TRAINING,
        rounds=rounds,
        evaluate=evaluate,
        privacy=privacy,
        max_model_bytes=1,
        max_update_norm_l2=None,
        nonce="",
        not_after=LATER,
    )


@pytest.fixture
def budget():
    budget = Budget()
    budget.apply(Created(identifier="it", host="here", place="there"))
    budget.apply(LineageOpened(lineage=LINEAGE, delta=DELTA, actor="ada", reason="first"))
    return budget


def asked(budget, run="run-1", *, caps=CAPS, now=NOW, **of_terms):
    return admit(
        budget,
        ACCOUNTANT,
        order(run, privacy=of_terms.get("privacy", PLAN)),
        terms(**of_terms),
        lineage=LINEAGE,
        unit="row",
        public_size=SIZE,
        caps=caps,
        now=now,
    )


def charged(budget, one, *, caps=CAPS, size=SIZE, now=NOW):
    return charge_of(budget, ACCOUNTANT, one, public_size=size, caps=caps, now=now)


def epsilon(charges, delta=DELTA):
    return epsilon_of(ACCOUNTANT, {charge.cost: charge.steps for charge in charges}, delta)


def test_a_run_is_admitted_with_all_its_rounds_and_the_least_noise(budget):
    found = asked(budget)
    assert isinstance(found, RunAdmitted)
    training, evaluations = found.planned
    assert training.steps == 10 * 10  # 800 units to train on, 80 a batch, 10 rounds
    assert training.cost.sample_rate == pytest.approx(0.1)
    assert evaluations == Charge(cost=Cost(noise_multiplier=30.0, sample_rate=1.0), steps=10)
    assert 1.98 < epsilon(found.planned) <= 2.0
    assert (found.lineage, found.terms_digest, found.expires_at) == (LINEAGE, "plan", LATER)


@pytest.mark.rule("6")
def test_the_policys_cap_holds_where_the_target_is_higher(budget):
    found = asked(budget, caps=Caps(epsilon_per_run=1.0, epsilon_per_lineage=5.0))
    assert epsilon(found.planned) <= 1.0


def test_a_run_with_a_smaller_delta_keeps_its_target_at_that_delta(budget):
    stricter = replace(PLAN, delta=1e-8)
    found = asked(budget, privacy=stricter)
    assert epsilon(found.planned, 1e-8) <= 2.0
    looser = asked(budget, privacy=replace(PLAN, delta=1e-2))
    assert looser.planned == asked(budget).planned, "the lineage's delta is the site's floor"


def test_history_and_holds_ask_for_more_noise_then_refuse(budget):
    noises = []
    for number in range(1, 30):
        found = asked(budget, f"run-{number}", evaluate=False)
        if isinstance(found, Shortfall):
            break
        noises.append(found.planned[0].cost.noise_multiplier)
        budget.apply(found)
        assert epsilon_of(ACCOUNTANT, budget.held(LINEAGE, NOW), DELTA) <= 5.0
    assert isinstance(found, Shortfall)
    assert "patients" in found.finding
    assert "epsilon 2 for the run and 5 for the lineage" in found.finding
    assert noises == sorted(noises)
    assert noises[-1] > noises[0]
    released = RunReleased(run=run_of(order("run-1")), actor="ada", reason="over")
    budget.apply(released)
    assert isinstance(asked(budget, "run-99", evaluate=False), RunAdmitted)
    assert isinstance(asked(budget, "run-99", now=LATER + 1), RunAdmitted), "holds expired"


def test_a_given_noise_is_taken_or_refused_never_changed(budget):
    given = replace(PLAN, target_epsilon=None, noise_multiplier=4.0)
    found = asked(budget, privacy=given)
    assert found.planned[0].cost.noise_multiplier == 4.0
    little = replace(PLAN, target_epsilon=None, noise_multiplier=0.5)
    assert isinstance(asked(budget, privacy=little), Shortfall)


@pytest.mark.parametrize("noise", [0.1, 1e-100, 1e-160, 5e-324])
def test_a_noise_that_is_none_is_never_admitted(budget, noise):
    given = replace(PLAN, target_epsilon=None, noise_multiplier=noise)
    assert isinstance(asked(budget, privacy=given), Shortfall)
    measured = replace(PLAN, evaluation_noise_multiplier=noise)
    assert isinstance(asked(budget, privacy=measured), Shortfall)


def test_training_and_evaluation_of_one_cost_are_counted_twice(budget):
    everyone = replace(TRAINING, batch_size=1000)
    same = replace(PLAN, target_epsilon=None, noise_multiplier=30.0)
    found = admit(
        budget,
        ACCOUNTANT,
        order(privacy=same, training=everyone),
        replace(terms(privacy=same), training=everyone),
        lineage=LINEAGE,
        unit="row",
        public_size=SIZE,
        caps=CAPS,
        now=NOW,
    )
    budget.apply(found)
    assert budget.held(LINEAGE, NOW) == {Cost(noise_multiplier=30.0, sample_rate=1.0): 20}


def test_orders_take_their_part_until_the_plan_is_spent(budget):
    budget.apply(asked(budget))
    for number in range(1, 11):
        for one in (order(number=number), order(number=number, training=None)):
            charge = charged(budget, one)
            assert isinstance(charge, Charge), charge
            budget.apply(WorkReserved(work=one.key(), lineage=LINEAGE, charge=charge))
    assert budget.held(LINEAGE, NOW) == {}
    assert budget.epsilon_run(ACCOUNTANT, run_of(order())) <= 2.0
    over = charged(budget, order(number=11))
    assert isinstance(over, Shortfall)
    assert "10 more steps would pass epsilon 2" in over.finding


def test_work_done_again_costs_again_and_later_rounds_find_it_gone(budget):
    budget.apply(asked(budget))
    taken = 0
    while isinstance(charge := charged(budget, order()), Charge):
        budget.apply(WorkReserved(work=order().key(), lineage=LINEAGE, charge=charge))
        taken += 1
        assert taken < 20
    assert taken in {10, 11}  # the noise found leaves less than one round over
    assert isinstance(charged(budget, order(number=2)), Shortfall)


@pytest.mark.rule("8")
def test_another_runs_hold_is_never_taken(budget):
    budget.apply(asked(budget, "run-1"))
    budget.apply(asked(budget, "run-2"))
    greedy = Caps(epsilon_per_run=100.0, epsilon_per_lineage=5.0)
    given = replace(PLAN, target_epsilon=None, noise_multiplier=4.0)
    while isinstance(charge := charged(budget, order("run-1", privacy=given), caps=greedy), Charge):
        key = order("run-1", privacy=given).key()
        budget.apply(WorkReserved(work=key, lineage=LINEAGE, charge=charge))
    for number in range(1, 11):
        one = order("run-2", number)
        charge = charged(budget, one)
        assert isinstance(charge, Charge), "what run-2 was admitted with is still there"
        budget.apply(WorkReserved(work=one.key(), lineage=LINEAGE, charge=charge))
    assert epsilon_of(ACCOUNTANT, budget.spendings[LINEAGE], DELTA) <= 5.0


def test_caps_are_those_of_now(budget):
    budget.apply(asked(budget))
    lower = Caps(epsilon_per_run=0.1, epsilon_per_lineage=5.0)
    assert isinstance(charged(budget, order(), caps=lower), Shortfall)


def test_a_public_size_that_changed_stops_the_run(budget):
    budget.apply(asked(budget))
    found = charged(budget, order(), size=SIZE + 500)
    assert "another rate" in found.finding


def test_an_evaluation_that_was_not_planned_is_refused(budget):
    budget.apply(asked(budget, evaluate=False))
    found = charged(budget, order(training=None))
    assert "nothing for evaluations" in found.finding


def test_the_worker_is_told_what_was_charged(budget):
    budget.apply(asked(budget))
    charge = charged(budget, order())
    mechanism = mechanism_of(order(), charge, SIZE)
    assert mechanism.noise_multiplier == charge.cost.noise_multiplier
    assert (mechanism.sample_rate, mechanism.steps) == (charge.cost.sample_rate, charge.steps)
    assert mechanism.expected_batch == pytest.approx(80.0)
    assert mechanism.clip_norm_l2 == 1.5
    assert measurement_of(order(), charge, SIZE) is None
    evaluation = order(training=None)
    charge = charged(budget, evaluation)
    measurement = measurement_of(evaluation, charge, SIZE)
    assert (measurement.noise_multiplier, measurement.public_examples) == (30.0, 200)
    assert mechanism_of(evaluation, charge, SIZE) is None
    assert mechanism_of(order(privacy=None), charge, SIZE) is None


# ---- how often a site samples ------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 10, 999, 10**7])
@pytest.mark.parametrize("batch", [1, 7, 64, 10**6])
@pytest.mark.rule("1")
def test_a_batch_is_what_it_is_said_to_be(size, batch):
    units = max(1, size - evaluation_size(size))
    found = sampling(replace(TRAINING, batch_size=batch, local_epochs=3), size)
    assert 0 < found.sample_rate <= 1
    assert found.expected_batch == pytest.approx(min(batch, units))
    assert found.steps == 3 * -(-units // batch)
    capped = sampling(replace(TRAINING, batch_size=batch, max_steps=2), size)
    assert capped.steps == min(2, -(-units // batch))
