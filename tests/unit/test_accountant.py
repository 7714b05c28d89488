"""What the agent's accountant does where mathematics or a coordinator misbehaves."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from fedfactory.privacy.accounting import Cost, epsilon_of
from site_agents.accountant import ORDERS, RdpAccounting


class Shelf:
    def __init__(self):
        self.kept = {}
        self.asked = []

    def recall(self, cost):
        self.asked.append(cost)
        return self.kept.get(cost)


def accounting(shelf=None):
    shelf = shelf or Shelf()
    return RdpAccounting(shelf.recall, shelf.kept.__setitem__)


@pytest.mark.parametrize("noise", [0.29, 1e-3, 1e-160, 1e-200, 5e-324, 0.0, math.nan])
@pytest.mark.parametrize("rate", [1e-9, 0.5, 1.0])
def test_noise_that_is_none_costs_without_bound(noise, rate):
    """The series overflow there: dp-accounting reads noise 1e-160 as epsilon 0."""
    cost = Cost(noise_multiplier=noise, sample_rate=rate)
    assert epsilon_of(accounting(), {cost: 1}, 1e-5) == math.inf


@pytest.mark.parametrize("noise", [0.3, 1.0, 256.0, 1e6])
@pytest.mark.parametrize("rate", [1e-12, 1e-6, 0.01, 0.5, 0.999999, 1.0])
def test_every_vector_is_of_costs(noise, rate):
    vector = accounting().measure(Cost(noise_multiplier=noise, sample_rate=rate))
    assert len(vector) == len(ORDERS)
    assert all(value >= 0 for value in vector)
    assert math.isfinite(min(vector))


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
def test_more_noise_never_costs_more(rate):
    found = [
        epsilon_of(accounting(), {Cost(noise_multiplier=n, sample_rate=rate): 100}, 1e-5)
        for n in (0.3, 0.5, 0.8, 1.0, 1.3, 2.0, 4.0, 9.0, 30.0, 100.0, 256.0)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] > 0


def test_a_vector_is_computed_once_and_kept():
    shelf = Shelf()
    first = accounting(shelf)
    cost = Cost(noise_multiplier=2.0, sample_rate=0.1)
    vector = first.rdp(cost)
    assert shelf.kept == {cost: vector}
    assert first.rdp(cost) is vector
    assert shelf.asked == [cost]
    later = accounting(shelf)
    assert later.rdp(cost) == vector


def test_nothing_spent_is_nothing():
    assert epsilon_of(accounting(), {}, 1e-5) == 0.0
    unbounded = Cost(noise_multiplier=0.1, sample_rate=1.0)
    assert epsilon_of(accounting(), {unbounded: 0}, 1e-5) == 0.0


def test_the_agents_accountant_brings_no_torch():
    script = (
        "import sys\n"
        "from site_agents.accountant import RdpAccounting\n"
        "from fedfactory.privacy.accounting import Cost\n"
        "assert 'dp_accounting' not in sys.modules\n"
        "a = RdpAccounting(lambda c: None, lambda c, v: None)\n"
        "print(a.epsilon(a.rdp(Cost(noise_multiplier=1.0, sample_rate=0.1)), 1e-5))\n"
        "assert not {'torch', 'opacus'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0
