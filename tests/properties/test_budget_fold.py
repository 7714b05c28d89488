"""Whatever is asked, in whatever order: epsilon never falls, and no cap is passed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.updates import Update
from fedfactory.privacy.accounting import (
    Cost,
    Limits,
    epsilon_of,
    fits,
    joined,
    least_noise,
    most_rounds,
    total,
)
from fedfactory.privacy.budget import Budget, LedgerEntryError, run_key
from fedfactory.privacy.entries import (
    ENTRIES,
    Charge,
    Created,
    LineageOpened,
    RunAdmitted,
    RunKey,
    RunLapsed,
    RunReleased,
    WorkCommitted,
    WorkRefunded,
    WorkReserved,
)

LINEAGE = "patients"
DELTA = 1e-5
NOW, LATER = 1000.0, 2000.0
LIMITS = Limits(run=2.0, lineage=4.0, delta=DELTA)
COSTS = tuple(
    Cost(noise_multiplier=noise, sample_rate=rate)
    for noise in (1.5, 4.0, 11.0)
    for rate in (0.1, 1.0)
)
ORDERS = (1.5, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Closed:
    """The Gaussian mechanism in closed form (Mironov 2017, proposition 7); q scales it down."""

    name = "closed form"

    def rdp(self, cost):
        return tuple(
            cost.sample_rate**2 * order / (2 * cost.noise_multiplier**2) for order in ORDERS
        )

    def epsilon(self, rdp, delta):
        found = (
            r + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
            for a, r in zip(ORDERS, rdp, strict=True)
        )
        return max(0.0, min(found))


ACCOUNTANT = Closed()
runs = st.integers(0, 3).map(lambda n: f"run-{n}")
costs = st.sampled_from(COSTS)
steps = st.integers(1, 60)
actions = st.one_of(
    st.tuples(st.just("admit"), runs, costs, steps),
    st.tuples(st.just("reserve"), runs, st.integers(1, 3), steps),
    st.tuples(st.just("reserve"), runs, st.integers(1, 3), steps),
    st.tuples(st.just("refund"), runs, st.integers(1, 3), st.none()),
    st.tuples(st.just("commit"), runs, st.integers(1, 3), st.none()),
    st.tuples(st.just("release"), runs, st.none(), st.none()),
    st.tuples(st.just("lapse"), runs, st.none(), st.none()),
    st.tuples(st.just("admit again"), runs, st.none(), st.none()),
    st.tuples(st.just("open"), runs, st.integers(4, 6), st.none()),
    st.tuples(st.just("later"), st.none(), st.none(), st.none()),
)


def work(run, number):
    return WorkKey(
        coordinator="lead",
        run_id=run,
        round=number,
        kind="evaluate",
        site="cesga",
        order_digest="one",
    )


def opened():
    budget = Budget()
    entries = [
        Created(identifier="it", host="here", place="there"),
        LineageOpened(lineage=LINEAGE, delta=DELTA, actor="ada", reason="first"),
    ]
    for entry in entries:
        budget.apply(entry)
    return budget, entries


def entry_for(budget, action, now):
    """Return the entry that the agent would write for an action; None where it would refuse."""
    what, run, which, count = action
    key = RunKey(coordinator="lead", run_id=run)
    if what == "open":
        return openly(budget, work(run, which))
    if what == "admit":
        return admission(budget, key, Charge(cost=which, steps=count), now)
    if key not in budget.runs:
        return None
    if what in ("lapse", "admit again", "release"):
        return of_hold(budget, key, what, now)
    one = work(run, which)
    if what == "reserve":
        charge = Charge(cost=budget.runs[key].planned[0].cost, steps=count)
        may = budget.may_reserve(ACCOUNTANT, key, charge, LIMITS, now)
        return WorkReserved(work=one, lineage=LINEAGE, charge=charge) if may else None
    return WorkRefunded(work=one) if what == "refund" else WorkCommitted(work=one, update=done(one))


def admission(budget, key, charge, now):
    others = budget.others(LINEAGE, key, now)
    if key in budget.runs or not fits(ACCOUNTANT, {charge.cost: charge.steps}, others, LIMITS):
        return None
    return RunAdmitted(
        run=key,
        terms_digest="plan",
        lineage=LINEAGE,
        unit="row",
        planned=(charge,),
        expires_at=LATER - 1,
    )


def openly(budget, one):
    """Work without privacy: begun, then finished."""
    if (one.coordinator, one.run_id, one.round, one.kind) in budget.works:
        return WorkCommitted(work=one, update=done(one))
    return WorkReserved(work=one, lineage=LINEAGE, charge=None)


def of_hold(budget, key, what, now):
    if what == "lapse":
        return RunLapsed(run=key, silent_days=7.0)
    if what == "admit again":
        return again(budget, key, now)
    return RunReleased(run=key, actor="ada", reason="over")


def again(budget, key, now):
    """Admit a lapsed run for what was left of its plan, as admission.readmit does."""
    run = budget.runs[key]
    whole = joined(run.spent, run.left())
    if not run.lapsed or not fits(ACCOUNTANT, whole, budget.others(LINEAGE, key, now), LIMITS):
        return None
    return RunAdmitted(
        run=key,
        terms_digest=run.terms_digest,
        lineage=LINEAGE,
        unit=run.unit,
        planned=run.planned,
        expires_at=run.expires_at,
    )


def done(one):
    return Update(work=one, payload=None, examples=1, metrics={}, seconds=1.0, privacy=None)


def state(budget):
    """Everything that a budget says, as plain values."""
    return (
        budget.deltas,
        {
            k: (
                r.lineage,
                {c: n for c, n in r.spent.items() if n},
                r.released,
                r.lapsed,
                r.active_at,
            )
            for k, r in budget.runs.items()
        },
        budget.works,
        budget.seconds,
        budget.unprotected,
        {k: {c: n for c, n in spent.items() if n} for k, spent in budget.spendings.items()},
    )


def play(sequence):
    """Play actions on a budget; yield (budget, entry, now) after each that was taken in."""
    budget, _ = opened()
    now = NOW
    for action in sequence:
        if action[0] == "later":
            now = LATER
            continue
        entry = entry_for(budget, action, now)
        if entry is None:
            continue
        before = repr(state(budget))
        try:
            budget.apply(entry, now)
        except LedgerEntryError:
            assert repr(state(budget)) == before, "what cannot follow changes nothing"
            continue
        yield budget, entry, now


@given(st.lists(actions, max_size=40))
@settings(max_examples=300)
@pytest.mark.rule("6")
def test_caps_hold_and_epsilon_never_falls_but_by_what_never_began(sequence):
    last = 0.0
    for budget, entry, now in play(sequence):
        spent = budget.spendings[LINEAGE]
        epsilon = epsilon_of(ACCOUNTANT, spent, DELTA)
        held = epsilon_of(ACCOUNTANT, joined(spent, budget.held(LINEAGE, now)), DELTA)
        assert epsilon <= held <= LIMITS.lineage
        for run in budget.runs:
            assert budget.epsilon_run(ACCOUNTANT, run) <= LIMITS.run
        assert epsilon >= last or isinstance(entry, WorkRefunded)
        last = epsilon


@given(st.lists(actions, max_size=40))
@settings(max_examples=200)
def test_what_is_spent_is_what_was_reserved_and_not_taken_back(sequence):
    standing = []
    for budget, entry, _ in play(sequence):
        if isinstance(entry, WorkReserved) and entry.charge is not None:
            standing.append((entry.work, entry.charge))
        if isinstance(entry, WorkRefunded):
            assert standing
            newest = next(i for i in reversed(range(len(standing))) if standing[i][0] == entry.work)
            del standing[newest]
        counted = joined(*({charge.cost: charge.steps} for _, charge in standing))
        assert {c: n for c, n in budget.spendings[LINEAGE].items() if n} == counted
        for run, found in budget.runs.items():
            own = joined(*({c.cost: c.steps} for work, c in standing if run_key(work) == run))
            assert {c: n for c, n in found.spent.items() if n} == own


@given(st.lists(actions, max_size=40))
@settings(max_examples=200)
def test_replay_of_what_was_written_gives_the_same_state(sequence):
    budget, entries = opened()
    written = [(entry, 0.0) for entry in entries]
    for live, entry, now in play(sequence):
        budget = live
        written.append((entry, now))
    replayed = Budget()
    for entry, at in written:
        text = to_json(entry)
        replayed.apply(from_json(ENTRIES[type(entry).__name__], text), at)
    assert state(replayed) == state(budget)


@given(st.lists(actions, max_size=40))
@settings(max_examples=200)
def test_a_lapse_returns_what_was_not_used_and_nothing_else(sequence):
    """Holds fall by exactly the run's unused plan; what is spent, by whom, stays."""
    spent, held = {}, {}
    for budget, entry, now in play(sequence):
        if isinstance(entry, RunLapsed):
            run = budget.runs[entry.run]
            freed = {} if run.released or now > run.expires_at else run.left()
            assert budget.spendings[LINEAGE] == spent
            assert joined(budget.held(LINEAGE, now), freed) == {
                cost: count for cost, count in held[now].items() if count
            }
            assert run.held(now) == {}
        spent = dict(budget.spendings[LINEAGE])
        held = {at: budget.held(LINEAGE, at) for at in (NOW, LATER)}


@given(st.lists(actions, max_size=40), st.floats(0.001, 400.0), st.floats(0, 1e9))
@settings(max_examples=200)
def test_only_silent_runs_with_a_hold_lapse(sequence, silent_days, later):
    for budget, _, now in play(sequence):
        at = now + later
        lapsing = {entry.run for entry in budget.lapsing(at, silent_days)}
        for key, run in budget.runs.items():
            silent = at - run.active_at > silent_days * 86400
            assert (key in lapsing) == (silent and bool(run.held(at)))


@given(st.lists(actions, max_size=40))
@settings(max_examples=200)
def test_finished_work_without_privacy_is_counted_once_and_for_good(sequence):
    count = 0
    for budget, entry, now in play(sequence):
        if isinstance(entry, WorkCommitted):
            newest = budget.works[
                (entry.work.coordinator, entry.work.run_id, entry.work.round, entry.work.kind)
            ].reservations[-1]
            count += newest is None
        found = budget.unprotected.get(LINEAGE)
        assert (found.updates if found else 0) == count
        assert found is None or found.last_at <= now


@given(st.lists(st.tuples(costs, steps), min_size=1, max_size=12), st.randoms())
def test_the_order_of_runs_does_not_matter_to_the_last_bit(charges, chance):
    def epsilon(parts):
        return epsilon_of(ACCOUNTANT, joined(*({c: n} for c, n in parts)), DELTA)

    shuffled = list(charges)
    chance.shuffle(shuffled)
    assert epsilon(shuffled) == epsilon(charges)


@given(st.lists(st.tuples(costs, steps), min_size=1, max_size=12), costs, steps)
def test_a_total_never_falls_by_one_charge_more(charges, cost, count):
    before = joined(*({c: n} for c, n in charges))
    after = joined(before, {cost: count})
    assert all(
        b >= a for a, b in zip(total(ACCOUNTANT, before), total(ACCOUNTANT, after), strict=True)
    )


@given(
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.integers(1, 500),
    st.lists(st.tuples(costs, steps), max_size=4),
)
def test_the_noise_found_fits_and_a_little_less_does_not(rate, count, charges):
    others = joined(*({c: n} for c, n in charges))
    found = least_noise(
        ACCOUNTANT, sample_rate=rate, steps=count, beside={}, others=others, limits=LIMITS
    )

    def fitting(noise):
        cost = Cost(noise_multiplier=noise, sample_rate=rate)
        return fits(ACCOUNTANT, {cost: count}, others, LIMITS)

    if found is None:
        assert not fitting(256.0)
    else:
        assert fitting(found)
        assert found == 0.3 or not fitting(found / 1.004)


@given(costs, st.lists(st.tuples(costs, steps), max_size=4), st.integers(0, 200))
def test_most_rounds_fit_and_one_more_does_not(cost, charges, at_most):
    others = joined(*({c: n} for c, n in charges))
    most = most_rounds(ACCOUNTANT, {cost: 3}, others, LIMITS, at_most=at_most)
    assert 0 <= most <= at_most
    assert most == 0 or fits(ACCOUNTANT, {cost: 3 * most}, others, LIMITS)
    assert most == at_most or not fits(ACCOUNTANT, {cost: 3 * (most + 1)}, others, LIMITS)


# ---- refunds, one by one -----------------------------------------------------------------------


def begun(*entries):
    budget, _ = opened()
    charge = Charge(cost=COSTS[0], steps=5)
    run = RunKey(coordinator="lead", run_id="run-0")
    budget.apply(
        RunAdmitted(
            run=run,
            terms_digest="p",
            lineage=LINEAGE,
            unit="row",
            planned=(charge,),
            expires_at=LATER,
        )
    )
    table = {
        "reserve": WorkReserved(work=work("run-0", 1), lineage=LINEAGE, charge=charge),
        "refund": WorkRefunded(work=work("run-0", 1)),
    }
    for name in entries:
        budget.apply(table[name])
    return budget, table


@pytest.mark.rule("9")
def test_an_attempt_that_was_followed_by_another_is_never_taken_back():
    budget, table = begun("reserve", "reserve", "refund")
    assert sum(budget.spendings[LINEAGE].values()) == 5
    with pytest.raises(LedgerEntryError, match="newest reservation"):
        budget.apply(table["refund"])
    assert sum(budget.spendings[LINEAGE].values()) == 5


def test_a_refund_names_the_order_that_was_reserved():
    budget, table = begun("reserve")
    with pytest.raises(LedgerEntryError, match="newest reservation"):
        budget.apply(WorkRefunded(work=replace(table["refund"].work, order_digest="other")))


def test_what_was_taken_back_is_held_again():
    budget, _ = begun("reserve", "refund")
    assert budget.held(LINEAGE, NOW) == {COSTS[0]: 5}
    assert budget.held(LINEAGE, LATER + 1) == {}


@pytest.mark.parametrize(
    "charge",
    [
        Charge(cost=COSTS[0], steps=0),
        Charge(cost=COSTS[0], steps=-5),
        Charge(cost=Cost(noise_multiplier=0.0, sample_rate=0.1), steps=1),
        Charge(cost=Cost(noise_multiplier=1.0, sample_rate=1.5), steps=1),
        Charge(cost=Cost(noise_multiplier=1.0, sample_rate=0.0), steps=1),
    ],
)
def test_a_charge_that_would_give_budget_back_is_refused(charge):
    budget, table = begun()
    with pytest.raises(LedgerEntryError, match="a charge is of steps"):
        budget.apply(replace(table["reserve"], charge=charge))
    assert budget.spendings[LINEAGE] == {}


def test_nothing_comes_before_the_ledger_is_created_and_it_is_created_once():
    lineage = LineageOpened(lineage=LINEAGE, delta=DELTA, actor="ada", reason="first")
    with pytest.raises(LedgerEntryError, match="created once, and first"):
        Budget().apply(lineage)
    budget, entries = opened()
    with pytest.raises(LedgerEntryError, match="created once, and first"):
        budget.apply(entries[0])
