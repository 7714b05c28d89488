"""What each site alone, and pooled data, would have reached: a job of a process of its own.

Alone: as many rounds as the run, of the site's own work only. Pooled: all training splits together
for as many epochs, which is the federation's total of local steps. Both start from the run's
initial model, under the run's own privacy, and are measured, like the run's final model, on the
union of all test splits. Local mode alone can do this: no real site's data is here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.orders import Scalar, TrainParameters
from fedfactory.contracts.privacy import Mechanism, PrivacyPlan
from fedfactory.durable_file import write_in_one_piece
from fedfactory.privacy.accounting import Cost, Limits, Rdp, least_noise
from fedfactory.privacy.sampling import sampling
from fedfactory.tasks.examples import Examples, SiteData
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import Task
from fedfactory.wire.arrays import read_arrays, write_arrays
from site_agents.accountant import RdpAccounting
from site_agents.data.sources import open_source

_METRIC: Final = "accuracy"  # of a task that classifies; "loss" of others


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is measured. `data` holds each site's source options, `final` the run's model file."""

    task: str
    task_parameters: Mapping[str, Scalar]
    data: Mapping[str, Mapping[str, Any]]
    training: TrainParameters
    privacy: PrivacyPlan | None
    rounds: int
    seed: int
    final: str


class _Bench:
    """One task and the union of all test splits, on which every model is measured."""

    def __init__(self, request: Request, folder: Path) -> None:
        self._request = request
        self._task: Task = load_task(request.task)
        self._folder = folder
        self._base = folder / "initial.safetensors"
        self._task.write_initial(request.task_parameters, request.seed, self._base)

    def run(self) -> dict[str, Any]:
        """Return the metric's name, and its value {local_only: {site: ...}, pooled, shared}."""
        request = self._request
        shares = {
            site: open_source(site, options, site).load(self._task, request.task_parameters)
            for site, options in request.data.items()
        }
        test = _joined([share.test for share in shares.values()])
        pooled = _joined([share.train for share in shares.values()])
        return {
            "metric": _METRIC if _METRIC in self._task.metrics else "loss",
            "local_only": {
                site: self._trained(site, SiteData(train=share.train, test=test), 1)
                for site, share in shares.items()
            },
            "pooled": self._trained("pooled", SiteData(train=pooled, test=test), len(shares)),
            "shared": self._measured(Path(request.final), SiteData(train=pooled, test=test)),
        }

    def _trained(self, name: str, data: SiteData, parts: int) -> float:
        """Train on `data` with the work of `parts` sites in all rounds; return the metric."""
        request = self._request
        training, model = request.training, self._base
        if training.max_steps is not None:
            training = replace(training, max_steps=training.max_steps * parts)
        mechanism = _mechanism(request, training, data) if request.privacy else None
        for number in range(1, request.rounds + 1):
            model = self._step(model, data, training, mechanism, (name, number))
        return self._measured(model, data)

    def _step(
        self,
        model: Path,
        data: SiteData,
        training: TrainParameters,
        mechanism: Mechanism | None,
        purpose: tuple[str, int],
    ) -> Path:
        workload = self._task.open(self._request.task_parameters, data, "cpu")
        update = self._folder / "update.safetensors"
        if mechanism is not None:
            workload.train_privately(base=model, out=update, training=training, mechanism=mechanism)
        else:
            seed = derive_seed(self._request.seed, "baseline", *purpose)
            workload.train(base=model, out=update, training=training, seed=seed)
        arrays, delta = read_arrays(model), read_arrays(update)
        trained = self._folder / "trained.safetensors"
        write_arrays(trained, {n: a + delta[n] if n in delta else a for n, a in arrays.items()})
        return trained

    def _measured(self, model: Path, data: SiteData) -> float:
        workload = self._task.open(self._request.task_parameters, data, "cpu")
        metrics = workload.evaluate(base=model).metrics
        return float(metrics[_METRIC] if _METRIC in metrics else metrics["loss"])


def _mechanism(request: Request, training: TrainParameters, data: SiteData) -> Mechanism:
    """Return the DP-SGD of one round that spends the run's epsilon in all of them."""
    plan = request.privacy
    assert plan is not None
    public_size = _units(data.train) + _units(data.test)
    once = sampling(training, public_size)
    noise = plan.noise_multiplier
    if plan.target_epsilon is not None:
        known: dict[Cost, Rdp] = {}
        limits = Limits(run=plan.target_epsilon, lineage=plan.target_epsilon, delta=plan.delta)
        noise = least_noise(
            RdpAccounting(known.get, known.__setitem__),
            sample_rate=once.sample_rate,
            steps=once.steps * request.rounds,
            beside={},
            others={},
            limits=limits,
        )
    assert noise is not None
    return Mechanism(
        noise_multiplier=noise,
        sample_rate=once.sample_rate,
        steps=once.steps,
        expected_batch=once.expected_batch,
        clip_norm_l2=plan.clip_norm_l2,
        grad_sample_mode=plan.grad_sample_mode,
    )


def _units(part: Examples) -> int:
    return len(part) if part.unit is None else len(np.unique(part.unit))


def _joined(parts: Sequence[Examples]) -> Examples:
    units = [part.unit for part in parts]
    offsets = np.cumsum([0, *(int(u.max()) + 1 if u is not None else 0 for u in units)])
    return Examples(
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        unit=None
        if any(u is None for u in units)
        else np.concatenate([u + o for u, o in zip(units, offsets, strict=False) if u is not None]),
    )


def main() -> int:
    """Read the request, measure, write the result in one piece."""
    parser = argparse.ArgumentParser(prog="python -m fedfactory.local.baselines")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        request = from_json(Request, options.config.read_text())
        result = _Bench(request, Path(folder)).run()
    write_in_one_piece(options.out, json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
