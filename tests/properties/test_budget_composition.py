"""The agent's accountant against closed forms and against Opacus'."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.privacy.accounting import Cost, epsilon_of, joined, total
from site_agents.accountant import ORDERS, RdpAccounting

KEPT = {}
ACCOUNTANT = RdpAccounting(KEPT.get, KEPT.__setitem__)


def cost(noise, rate):
    return Cost(noise_multiplier=noise, sample_rate=rate)


noises = st.floats(0.4, 60.0)
rates = st.sampled_from([0.001, 0.01, 0.05, 0.2, 1.0])
deltas = st.sampled_from([1e-3, 1e-5, 1e-8])


@given(st.floats(0.3, 256.0), st.integers(1, 10_000), deltas)
@settings(max_examples=60, deadline=None)
def test_without_sampling_it_is_the_gaussian_in_closed_form(noise, steps, delta):
    """RDP of order a is a / (2 sigma^2) (Mironov 2017); conversion by Canonne et al. 2020."""
    closed = min(
        steps * a / (2 * noise**2) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        for a in ORDERS
    )
    found = epsilon_of(ACCOUNTANT, {cost(noise, 1.0): steps}, delta)
    assert found == pytest.approx(max(0.0, closed), rel=1e-9, abs=1e-9)


@given(st.floats(1.0, 50.0), st.integers(1, 400), deltas)
@settings(max_examples=60, deadline=None)
@pytest.mark.rule("7")
def test_epsilon_is_above_the_exact_one_of_the_gaussian(noise, steps, delta):
    """Balle and Wang 2018, theorem 8: the least epsilon there is; Renyi accounting is near it."""
    mu = math.sqrt(steps) / noise

    def tail(x):
        return 0.5 * math.erfc(x / math.sqrt(2))

    def delta_at(epsilon):
        near = tail(epsilon / mu - mu / 2)
        far = tail(epsilon / mu + mu / 2)
        return near - (math.exp(epsilon) * far if far > 0 else 0.0)

    found = epsilon_of(ACCOUNTANT, {cost(noise, 1.0): steps}, delta)
    if found < 200:
        assert delta_at(found) <= delta * (1 + 1e-9)


@given(noises, rates, st.integers(1, 500), st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_steps_add_up(noise, rate, first, second):
    one = cost(noise, rate)
    together = epsilon_of(ACCOUNTANT, {one: first + second}, 1e-5)
    apart = joined({one: first}, {one: second})
    assert epsilon_of(ACCOUNTANT, apart, 1e-5) == together
    assert together >= epsilon_of(ACCOUNTANT, {one: first}, 1e-5)


@given(
    st.lists(st.tuples(noises, rates, st.integers(1, 2000)), min_size=1, max_size=4),
    deltas,
)
@settings(max_examples=12, deadline=None)
@pytest.mark.rule("7")
def test_it_agrees_with_opacus_at_the_same_orders(history, delta):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.analysis import rdp as opacus

        rdp = sum(
            opacus.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=list(ORDERS))
            for noise, rate, steps in history
        )
        rdp = np.where(np.isnan(rdp), np.inf, rdp)
        theirs, _ = opacus.get_privacy_spent(orders=list(ORDERS), rdp=rdp, delta=delta)
    theirs = max(theirs, 0.0)  # its formula goes below
    charges = joined(*({cost(noise, rate): steps} for noise, rate, steps in history))
    ours = epsilon_of(ACCOUNTANT, charges, delta)
    # dp-accounting also knows when epsilon 0 is enough (Bretagnolle and Huber's bound).
    if delta**2 + math.expm1(-min(total(ACCOUNTANT, charges))) > 0:
        assert ours == 0.0
        return
    # At small fractional orders it takes a bound where Opacus takes a value: never less. Those
    # orders decide only where epsilon is large.
    assert ours >= theirs * (1 - 1e-6)
    if theirs < 10:
        assert ours <= theirs * 1.02


@given(st.floats(0.4, 60.0), rates)
@settings(max_examples=12, deadline=None)
def test_each_order_agrees_with_opacus_and_is_never_less(noise, rate):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants.analysis.rdp import compute_rdp

        theirs = compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(ORDERS))
    for order, our, their in zip(ORDERS, ACCOUNTANT.rdp(cost(noise, rate)), theirs, strict=True):
        if not math.isnan(their):
            assert our >= their * (1 - 1e-5), order
        if order == int(order):
            assert our == pytest.approx(their, rel=1e-5), order


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (1.1, 256 / 60000, 14000, 1e-5),
        (2.0, 0.25, 300, 1e-4),
        (0.8, 0.01, 500, 1e-6),
        (2, 0.001, 300, 1e-5),
    ],
)
def test_our_orders_cost_little_against_opacus_own(noise, rate, steps, delta):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import RDPAccountant

        theirs = RDPAccountant()
        theirs.history = [(noise, rate, steps)]
        best = theirs.get_epsilon(delta)
    ours = epsilon_of(ACCOUNTANT, {cost(noise, rate): steps}, delta)
    assert ours == pytest.approx(best, rel=0.03)
