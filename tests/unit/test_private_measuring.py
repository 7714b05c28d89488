"""A noised evaluation: what a record may weigh, the noise, and the public divisor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedfactory.contracts.privacy import Measurement
from fedfactory.privacy.chacha import NoiseSource
from fedfactory.privacy.units import Units
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.objectives import CLASSIFICATION, REGRESSION, Objective
from fedfactory.tasks.private_measuring import measure_privately
from fedfactory.tasks.rehearsal import Passes
from fedfactory.tasks.table import load_task
from tests.private_descents import fresh_source, network_and_data, silent_source

ONE_IN_A_MILLION = 1e-6
PUBLIC = 100
CLIP = 4.0


def measured(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    source: NoiseSource,
    noise_multiplier: float = 1.0,
    objective: Objective = CLASSIFICATION,
    unit: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the reported loss and score."""
    found = measure_privately(
        network,
        objective,
        x,
        y,
        units=Units(len(y), unit),
        measurement=Measurement(
            noise_multiplier=noise_multiplier, loss_clip=CLIP, public_examples=PUBLIC
        ),
        source=source,
        passes=Passes(rows=16, threads=1),
    )
    return found["loss"], found[objective.metric]


def test_without_noise_it_is_the_clipped_mean_over_the_public_count() -> None:
    network, x, y = network_and_data("digits mlp", 30)
    loss, accuracy = measured(network, x, y, source=silent_source())
    with torch.no_grad():
        outputs = network(x)
    losses = CLASSIFICATION.losses(outputs, y).clamp(0, CLIP)
    assert loss == pytest.approx(float(losses.sum()) / PUBLIC, rel=1e-5)
    assert accuracy == pytest.approx(float((outputs.argmax(1) == y).sum()) / PUBLIC)


@pytest.mark.parametrize("objective", [CLASSIFICATION, REGRESSION])
@pytest.mark.parametrize("value", [0.0, 1e20, float("inf"), float("nan")])
@pytest.mark.rule("32")
def test_a_record_replaced_by_null_moves_each_sum_by_its_bound_at_most(
    objective: Objective, value: float
) -> None:
    network = nn.Linear(64, 10 if objective is CLASSIFICATION else 1)
    _, x, y = network_and_data("digits mlp", 30)
    y = y.to(objective.y_type)
    x[0] = value
    whole = measured(network, x, y, source=silent_source(), objective=objective)
    without = measured(network, x[1:], y[1:], source=silent_source(), objective=objective)
    bounds = (CLIP, objective.score_bound(CLIP))
    for found, other, bound in zip(whole, without, bounds, strict=True):
        assert abs(found - other) <= bound / PUBLIC * (1 + 1e-9)


@pytest.mark.rule("32")
def test_each_sum_gets_noise_of_the_multiplier_times_their_joint_sensitivity() -> None:
    network, x, y = network_and_data("digits mlp", 50)
    source, sigma, draws = fresh_source(), 2.0, 400
    clean = measured(network, x, y, source=silent_source())
    noisy = np.array(
        [measured(network, x, y, source=source, noise_multiplier=sigma) for _ in range(draws)]
    )
    parts = (noisy - clean) * PUBLIC / (CLIP, 1.0) / (sigma * 2**0.5)
    low, high = stats.chi2.interval(1 - ONE_IN_A_MILLION, draws)
    assert np.all((low < (parts**2).sum(0)) & ((parts**2).sum(0) < high))
    assert abs(np.corrcoef(parts.T)[0, 1]) < 5 / draws**0.5


def test_what_noise_moved_out_of_range_is_put_back() -> None:
    network, x, y = network_and_data("digits mlp", 5)
    source = fresh_source()
    for _ in range(50):
        loss, accuracy = measured(network, x, y, source=source, noise_multiplier=1e4)
        assert 0.0 <= loss <= CLIP
        assert 0.0 <= accuracy <= 1.0


@pytest.mark.rule("2")
def test_a_unit_contributes_one_row_however_many_it_holds() -> None:
    network = nn.Linear(1, 2)
    x, y = torch.ones(40, 1), torch.zeros(40, dtype=torch.int64)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)  # always answers 0, which is right
    unit = np.repeat(np.array([1, 2], np.int64), [39, 1])
    _, accuracy = measured(network, x, y, source=silent_source(), unit=unit)
    assert accuracy == pytest.approx(2 / PUBLIC)


def test_two_evaluations_of_one_model_differ_and_the_counts_true_value_stays(
    tmp_path: Path,
) -> None:
    task = load_task("digits")
    parameters = {"model": "mlp"}
    examples = task.bundled(parameters)
    data = SiteData(train=examples.take(np.arange(9)), test=examples.take(np.arange(9, 39)))
    task.write_initial(parameters, 1, tmp_path / "base")
    workload = task.open(parameters, data, "cpu")
    measurement = Measurement(noise_multiplier=1.0, loss_clip=CLIP, public_examples=PUBLIC)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        outcome = workload.evaluate_privately(base=tmp_path / "base", measurement=measurement)
        assert set(outcome.metrics) == {"loss", "accuracy"}
        found.append(outcome.metrics["loss"])
    assert found[0] != found[1]
