"""DP-SGD on a GPU: the same clipped sum as on a CPU, our noise, nothing from the GPU's generator."""

from __future__ import annotations

import pytest
import torch

from fedfactory.contracts.privacy import GradSampleMode
from tests.private_descents import (
    MODES,
    NETWORKS,
    mechanism,
    moved,
    network_and_data,
    silent_source,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_the_clipped_sum_is_the_cpus(name: str, mode: GradSampleMode) -> None:
    network, x, y = network_and_data(name, 24)
    x[0] = float("inf")
    how = mechanism(grad_sample_mode=mode)
    expected = moved(network, x, y, how, source=silent_source())
    found = moved(network.cuda(), x.cuda(), y.cuda(), how, source=silent_source())
    assert float((found.cpu() - expected).norm()) <= 1e-3 * float(expected.norm())


@pytest.mark.parametrize("mode", MODES)
def test_a_record_moves_the_sum_by_the_clip_at_most(mode: GradSampleMode) -> None:
    """TensorFloat-32 would let ghost's two passes disagree by more."""
    network, x, y = network_and_data("digits cnn", 24)
    network, x, y = network.cuda(), x.cuda() * 1e3, y.cuda()
    how = mechanism(grad_sample_mode=mode, clip_norm_l2=10.0)
    whole = moved(network, x, y, how, source=silent_source())
    without = moved(network, x[1:], y[1:], how, source=silent_source())
    assert float((whole - without).norm()) <= 10.0 * (1 + 1e-4)


def test_noise_has_its_variance_and_leaves_the_gpus_generator_alone() -> None:
    network, x, y = network_and_data("digits mlp", 1)
    network, x, y = network.cuda(), x.cuda()[:0], y.cuda()[:0]
    before = torch.cuda.get_rng_state()
    step = moved(network, x, y, mechanism(noise_multiplier=2.0)) / 2.0
    assert torch.equal(torch.cuda.get_rng_state(), before)
    count = step.numel()
    assert abs(float((step**2).sum()) / count - 1.0) < 5 * (2 / count) ** 0.5


def test_convolutions_get_their_setting_back() -> None:
    before = torch.backends.cudnn.allow_tf32
    network, x, y = network_and_data("digits cnn", 4)
    moved(network.cuda(), x.cuda(), y.cuda(), mechanism())
    assert torch.backends.cudnn.allow_tf32 == before
