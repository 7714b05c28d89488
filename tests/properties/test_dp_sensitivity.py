"""One unit more or less moves the noiseless sum by the clipping norm at most, whatever it holds."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedfactory.contracts.privacy import GradSampleMode
from fedfactory.tasks.clipped_gradients import PrivateModelError
from fedfactory.tasks.objectives import CLASSIFICATION
from tests.private_descents import (
    MODES,
    NETWORKS,
    mechanism,
    moved,
    network_and_data,
    silent_source,
)

ROUNDING = 1 + 1e-6
ROWS = 16  # of each pass, as many as any test here has records
ROUNDING_OF_WEIGHTS = 1e-7  # what moves a float32 weight of about 1 is rounded
loaded = cache(network_and_data)
# Also what overflows, underflows or is no number on the way through a network.
scales = st.sampled_from([0.0, 1e-30, 1e-12, 1.0, 1e6, 1e15, 1e25, 1e38, np.inf, -np.inf, np.nan])


def naive_sum(network: nn.Module, x: Tensor, y: Tensor, clip: float) -> Tensor:
    """Algorithm 1 of Abadi et al. 2016 as it is written, record by record."""
    total = torch.zeros(sum(p.numel() for p in network.parameters()), dtype=torch.float64)
    for i in range(len(y)):
        loss = CLASSIFICATION.losses(network(x[i : i + 1]), y[i : i + 1]).sum()
        parts = torch.autograd.grad(loss, list(network.parameters()))
        flat = torch.cat([p.flatten() for p in parts]).double()
        if flat.isfinite().all():
            total += flat / max(1.0, float(flat.norm()) / clip)
    return total


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e4])
def test_the_sum_is_that_of_algorithm_1(name: str, mode: GradSampleMode, clip: float) -> None:
    network, x, y = loaded(name, 7)
    how = mechanism(clip_norm_l2=clip, grad_sample_mode=mode)
    expected = naive_sum(network, x, y, clip)
    found = -moved(network, x, y, how, source=silent_source())
    rounding = ROUNDING_OF_WEIGHTS * found.numel() ** 0.5
    assert float((found - expected).norm()) <= 1e-4 * float(expected.norm()) + rounding


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=12, deadline=None)
@given(
    record=st.integers(0, 6),
    scale=scales,
    feature=st.none() | st.integers(0, 1),
    clip=st.sampled_from([0.01, 1.0]),
)
@pytest.mark.rule("21")
def test_a_record_replaced_by_null_moves_the_sum_by_the_clipping_norm_at_most(
    name: str, mode: GradSampleMode, *, record: int, scale: float, feature: int | None, clip: float
) -> None:
    network, x, y = loaded(name, 7)
    x = x.clone()
    with torch.no_grad():
        x[record, slice(None) if feature is None else feature] *= scale
    how = mechanism(clip_norm_l2=clip, grad_sample_mode=mode)
    others = torch.arange(7) != record
    whole = moved(network, x, y, how, source=silent_source())
    without = moved(network, x[others], y[others], how, source=silent_source())
    assert whole.isfinite().all()
    rounding = ROUNDING_OF_WEIGHTS * whole.numel() ** 0.5
    assert float((whole - without).norm()) <= clip * ROUNDING + rounding


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("power", [-25, -23, -20, -10, 0, 10, 18])
def test_no_weights_of_the_coordinators_choice_get_a_record_past_the_clip(
    mode: GradSampleMode, power: int
) -> None:
    """Squares of activations vanish in float32 where squares of gradients do not, and so on.

    Only the middle layer, all zero, has a gradient; Opacus' own ghost norm of it is 0 for -23.
    """
    first, middle, last = (nn.Linear(i, o, bias=False) for i, o in ((4, 4096), (4096, 2), (2, 2)))
    with torch.no_grad():
        first.weight.fill_(10.0**power)
        middle.weight.zero_()
        last.weight.copy_(torch.eye(2) * 10.0 ** min(18, -power))
    network = nn.Sequential(first, middle, last)
    clip = 1e-4
    x, y = torch.full((3, 4), 0.25), torch.tensor([0, 1, 0])
    sums = _clipped_sums(network, x, y, mode, clip)
    fewer = _clipped_sums(network, x[1:], y[1:], mode, clip)
    assert sums.isfinite().all()
    assert float((sums - fewer).norm()) <= clip * ROUNDING


def _clipped_sums(
    network: nn.Module, x: Tensor, y: Tensor, mode: GradSampleMode, clip: float
) -> Tensor:
    from fedfactory.tasks.clipped_gradients import open_gradients

    gradients = open_gradients(network, CLASSIFICATION, mode)
    padded, labels = (torch.cat([t, t.new_zeros(ROWS - len(t), *t.shape[1:])]) for t in (x, y))
    try:
        return torch.cat([part.flatten() for part in gradients.sums(padded, labels, len(x), clip)])
    finally:
        gradients.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("power", [6, 12, 20, 30])
@pytest.mark.rule("21")
def test_no_cancellation_in_the_coordinators_weights_gets_a_record_past_the_clip(
    mode: GradSampleMode, power: int
) -> None:
    """All classes have one huge weight, so that what goes back below them is rounding alone.

    It vanishes in one backward pass and not in another: whoever clips by the norms of one and adds
    up the other lets single records through unclipped.
    """
    network, x, y = network_and_data("digits mlp", 200)
    with torch.no_grad():
        network[4].weight.fill_(10.0**power)
        network[4].bias.copy_(torch.arange(10) * 0.3)
        network[2].weight.mul_(10.0**-power)
        network[2].bias.fill_(10.0**-power)
    norms = [
        float(_clipped_sums(network, x[i : i + 1], y[i : i + 1], mode, 1.0).norm())
        for i in range(len(y))
    ]
    assert max(norms) <= ROUNDING
    assert max(norms) > 0.5


@pytest.mark.parametrize("mode", MODES)
def test_a_weight_used_twice_is_clipped_as_one_or_refused(mode: GradSampleMode) -> None:
    _, x, y = network_and_data("digits mlp", 6)
    tied = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 10))
    tied[2].weight = tied[0].weight
    if mode == "ghost":
        with pytest.raises(PrivateModelError, match="more than once"):
            _clipped_sums(tied, x, y, mode, 1.0)
        return
    for i in range(len(y)):
        assert float(_clipped_sums(tied, x[i : i + 1], y[i : i + 1], mode, 1.0).norm()) <= ROUNDING
