"""A privacy audit: how well a canary in the data is told from its absence, against the ledger.

Whoever guesses from an update whether a record was there is right so seldom that
epsilon >= ln((hits - delta) / false alarms), both ways round (Kairouz et al. 2015). Hits and alarms
are counted over many runs and bounded by Clopper and Pearson, 97.5 % each; the threshold is chosen
on other runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from fedfactory.contracts.privacy import Mechanism
from fedfactory.privacy.accounting import Cost, epsilon_of
from fedfactory.privacy.chacha import KEY_BYTES, NoiseSource
from site_agents.accountant import RdpAccounting
from tests.private_descents import SilentSource, mechanism, moved

DELTA = 1e-3
RUNS = 400  # half of them choose the threshold
# Everybody in every step, and Poisson samples. A huge expected batch keeps the model at zero, where
# the canary's gradient is largest.
MECHANISMS = [
    mechanism(noise_multiplier=1.5, sample_rate=1.0, steps=2, expected_batch=1e6),
    mechanism(noise_multiplier=1.5, sample_rate=0.9, steps=2, expected_batch=1e6),
]
either = pytest.mark.parametrize("how", MECHANISMS, ids=["everybody", "samples"])
CONFIDENCE = 0.975


class WeakSource(NoiseSource):
    """Noise with a tenth of the deviation that the ledger charged for."""

    def fill_gaussians(self, out: NDArray[np.float64]) -> None:
        super().fill_gaussians(out)
        out *= 0.1


def charged(how: Mechanism) -> float:
    """Return what the ledger's accountant charges for the mechanism."""
    accountant = RdpAccounting(lambda _: None, lambda _, __: None)
    cost = Cost(noise_multiplier=how.noise_multiplier, sample_rate=how.sample_rate)
    return epsilon_of(accountant, {cost: how.steps}, DELTA)


def audited(how: Mechanism, source: Callable[[bytes], NoiseSource]) -> float:
    """Return a lower bound on epsilon, of 95 % confidence."""
    present, absent = (_scores(how, source, canary=canary) for canary in (True, False))
    half = RUNS // 2
    candidates = np.quantile(
        np.concatenate([present[:half], absent[:half]]), np.linspace(0.02, 0.98, 97)
    )
    threshold = max(candidates, key=lambda t: _bound(present[:half], absent[:half], t))
    return _bound(present[half:], absent[half:], threshold)


@either
@pytest.mark.rule("35")
def test_a_canary_is_told_no_better_than_the_ledger_says(how: Mechanism) -> None:
    assert audited(how, NoiseSource) <= charged(how)


@pytest.mark.parametrize(
    ("how", "broken"),
    list(zip(MECHANISMS, (WeakSource, SilentSource), strict=True)),
    ids=["a tenth of the noise", "no noise"],
)
@pytest.mark.rule("35")
def test_the_audit_finds_too_little_noise(how: Mechanism, broken: type[NoiseSource]) -> None:
    """The audit has teeth; simulated, it finds at least 1.14 times what is charged."""
    assert audited(how, broken) > charged(how)


def _scores(
    how: Mechanism, source: Callable[[bytes], NoiseSource], *, canary: bool
) -> NDArray[np.float64]:
    """Train from zero, again and again; score how far the canary's own weights went its way."""
    network = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(network.weight)
    x = torch.tensor([[1.0, 0.5, 0.0]] * 6 + [[0.0, 0.0, 1e3]] * canary)  # far over the clip
    y = torch.tensor([0, 1] * 3 + [1] * canary)
    scores = np.empty(RUNS)
    for run in range(RUNS):
        update = moved(network, x, y, how, source=source(os.urandom(KEY_BYTES)))
        scores[run] = update[5] - update[2]  # weights of the third feature: class 1, class 0
    return scores


def _bound(present: NDArray[np.float64], absent: NDArray[np.float64], threshold: float) -> float:
    """Return the larger bound of the two ways to guess: present above, absent below."""
    above = _epsilon((present > threshold).sum(), (absent > threshold).sum(), len(present))
    below = _epsilon((absent <= threshold).sum(), (present <= threshold).sum(), len(present))
    return max(above, below)


def _epsilon(hits: int, alarms: int, runs: int) -> float:
    least = float(stats.beta.ppf(1 - CONFIDENCE, hits, runs - hits + 1)) if hits else 0.0
    most = float(stats.beta.ppf(CONFIDENCE, alarms + 1, runs - alarms)) if alarms < runs else 1.0
    return math.log((least - DELTA) / most) if least > DELTA else 0.0
