"""DP-SGD on small data for tests: what one descent moves, with noise on or off."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import GradSampleMode, Mechanism
from fedfactory.privacy.chacha import KEY_BYTES, NoiseSource
from fedfactory.privacy.units import Units
from fedfactory.tasks.objectives import CLASSIFICATION, Objective
from fedfactory.tasks.private_learning import descend_privately
from fedfactory.tasks.rehearsal import Passes
from fedfactory.tasks.table import load_task

MODES: tuple[GradSampleMode, ...] = ("hooks", "ghost")
# Every network that a bundled task can train by DP-SGD.
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "digits mlp": ("digits", {"model": "mlp"}),
    "digits cnn": ("digits", {"model": "cnn"}),
    "breast_cancer": ("breast_cancer", {}),
    "tabular mlp": (
        "tabular",
        {
            "kind": "classification",
            "label": "outcome:0|1",
            "numeric": "age:50:20,bmi:25:5",
            "categorical": "sex:f|m",
            "model": "mlp",
            "hidden": 8,
        },
    ),
    "timeseries": (
        "timeseries",
        {
            "kind": "classification",
            "label": "fails_soon:0|1",
            "sensors": "temperature:70:10,vibration:0.5:0.2",
            "order": "cycle",
            "window": 16,
            "stride": 8,
            "channels": 8,
        },
    ),
}


class SilentSource(NoiseSource):
    """Draws batches, and noise that is zero."""

    def fill_gaussians(self, out: NDArray[np.float64]) -> None:
        out[:] = 0.0


def fresh_source() -> NoiseSource:
    return NoiseSource(os.urandom(KEY_BYTES))


def silent_source() -> NoiseSource:
    return SilentSource(os.urandom(KEY_BYTES))


def training(**changes: Any) -> TrainParameters:
    values: dict[str, Any] = {
        "local_epochs": 1,
        "batch_size": 16,
        "lr": 1.0,
        "momentum": 0.0,
        "proximal_mu": 0.0,
        "max_steps": None,
    }
    return TrainParameters(**{**values, **changes})


def mechanism(**changes: Any) -> Mechanism:
    values: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "sample_rate": 1.0,
        "steps": 1,
        "expected_batch": 1.0,
        "clip_norm_l2": 1.0,
        "grad_sample_mode": "hooks",
    }
    return Mechanism(**{**values, **changes})


def network_and_data(name: str, records: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network with weights of seed 1, and the task's first records, shuffled."""
    task_name, parameters = NETWORKS[name]
    task = load_task(task_name)
    examples = task.bundled(parameters)
    some = examples.take(np.random.default_rng(1).permutation(len(examples))[:records])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        network = task.network(parameters)  # type: ignore[attr-defined]
    return network, torch.from_numpy(some.x), torch.from_numpy(some.y)


def moved(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    how: Mechanism,
    *,
    source: NoiseSource | None = None,
    by: TrainParameters | None = None,
    unit: NDArray[np.int64] | None = None,
    objective: Objective = CLASSIFICATION,
    rows: int = 32,
) -> Tensor:
    """Return how far one descent moves the network's parameters, (parameters,) in float64."""
    start = {name: value.clone() for name, value in network.state_dict().items()}
    descend_privately(
        network,
        objective,
        x,
        y,
        units=Units(len(y), unit),
        training=by or training(),
        mechanism=how,
        source=source or fresh_source(),
        passes=Passes(rows=rows, threads=torch.get_num_threads()),
    )
    named = dict(network.named_parameters())
    result = torch.cat([(p.detach() - start[n]).double().flatten() for n, p in named.items()])
    network.load_state_dict(start)
    return result
