"""Training and measuring a torch network on one site's examples. Bit-reproducible on a CPU.

Under differential privacy nothing is reproducible, on purpose: each execution draws a fresh key
from the operating system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import Measurement, Mechanism
from fedfactory.privacy.chacha import KEY_BYTES, NoiseSource
from fedfactory.privacy.units import Units
from fedfactory.tasks.descent import Descent
from fedfactory.tasks.examples import Examples, SiteData
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.rehearsal import Passes, Rehearsal, rehearsal_of
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.step_randomness import repeat_randomness
from fedfactory.tasks.task import ModelMismatchError, Outcome
from fedfactory.wire.arrays import read_arrays, spec_of, write_arrays

EVALUATION_BATCH = 2048


def arrays_of(network: nn.Module) -> dict[str, NDArray[Any]]:
    """Return a network's parameters and buffers as arrays (views on CPU tensors), by name.

    Raises:
        UsageError: a tensor of a type that NumPy has not, as bfloat16.
    """
    found = {}
    for name, tensor in network.state_dict().items():
        try:
            found[name] = tensor.detach().cpu().numpy()
        except TypeError as error:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"the network's tensor '{name}' is {kind}, which cannot travel: make it float32"
            ) from error
    return found


class Learning:
    """One network and one site's data, ready to work."""

    def __init__(
        self,
        network: nn.Module,
        data: SiteData,
        device: str,
        objective: Objective,
        rehearse: Callable[[Rehearsal], Passes],
    ) -> None:
        self._network = network.to(device)
        self._spec = spec_of(arrays_of(network))
        self._device = device
        self._objective = objective
        self._rehearse = rehearse
        self._data = data
        self._train = _tensors(data.train, device, objective)
        self._test = _tensors(data.test, device, objective)

    @property
    def spec(self) -> ModelSpec:
        """The network's tensors."""
        return self._spec

    def train(self, *, base: Path, out: Path, training: TrainParameters, seed: int) -> Outcome:
        """Train from `base`; write trained minus base, float tensors only, to `out`."""
        before = self._load(base)
        self._network.train()
        parameters: list[Tensor] = [p for p in self._network.parameters() if p.requires_grad]
        descent = Descent(parameters, training)
        x, y = self._train
        loss_sum = torch.zeros((), device=self._device)
        score_sum = torch.zeros((), device=self._device, dtype=torch.float64)
        seen = 0
        for step, indices in enumerate(_batches(len(y), training, seed)):
            repeat_randomness(derive_seed(seed, "step", step))
            xs, ys = x[indices], y[indices]
            outputs = self._network(xs)
            loss = self._objective.mean_loss(outputs, ys)
            descent.step(list(torch.autograd.grad(loss, parameters)))
            with torch.no_grad():
                loss_sum += loss * len(ys)
                score_sum += self._objective.scores(outputs, ys).sum()
            seen += len(ys)
        update = self._write_update(out, before, {t.name for t in self._spec.tensors})
        metrics = {"loss": float(loss_sum) / seen, self._objective.metric: float(score_sum) / seen}
        return Outcome(examples=min(seen, len(y)), metrics=metrics, update=update)

    def evaluate(self, *, base: Path) -> Outcome:
        """Return the loss and the objective's metric of `base` on the test split."""
        self._load(base)
        self._network.eval()
        x, y = self._test
        loss_sum, score_sum = 0.0, 0.0
        with torch.inference_mode():
            for start in range(0, len(y), EVALUATION_BATCH):
                outputs = self._network(x[start : start + EVALUATION_BATCH])
                ys = y[start : start + EVALUATION_BATCH]
                loss_sum += float(self._objective.losses(outputs, ys).sum())
                score_sum += float(self._objective.scores(outputs, ys).sum())
        metrics = {"loss": loss_sum / len(y), self._objective.metric: score_sum / len(y)}
        return Outcome(examples=len(y), metrics=metrics, update=None)

    def train_privately(
        self, *, base: Path, out: Path, training: TrainParameters, mechanism: Mechanism
    ) -> Outcome:
        """Train by DP-SGD; write an update in which only trained parameters move.

        Raises:
            PrivateModelError: the model has a layer that DP-SGD cannot train.
        """
        # Importing Opacus takes 1 to 3 s.
        from fedfactory.tasks.private_learning import descend_privately

        passes = self._rehearse(rehearsal_of(mechanism))
        before = self._load(base)
        x, y = self._train
        descend_privately(
            self._network,
            self._objective,
            x,
            y,
            units=Units(len(y), self._data.train.unit),
            training=training,
            mechanism=mechanism,
            source=NoiseSource(os.urandom(KEY_BYTES)),
            passes=passes,
        )
        named = self._network.named_parameters(remove_duplicate=False)
        update = self._write_update(out, before, {name for name, p in named if p.requires_grad})
        return Outcome(examples=len(y), metrics={}, update=update)

    def evaluate_privately(self, *, base: Path, measurement: Measurement) -> Outcome:
        """Measure `base` on the test split with noise; `examples` is the true count."""
        from fedfactory.tasks.private_measuring import measure_privately

        passes = self._rehearse(rehearsal_of(measurement))
        self._load(base)
        x, y = self._test
        metrics = measure_privately(
            self._network,
            self._objective,
            x,
            y,
            units=Units(len(y), self._data.test.unit),
            measurement=measurement,
            source=NoiseSource(os.urandom(KEY_BYTES)),
            passes=passes,
        )
        return Outcome(examples=len(y), metrics=metrics, update=None)

    def _write_update(self, out: Path, before: dict[str, NDArray[Any]], moved: set[str]) -> BlobRef:
        after = arrays_of(self._network)
        floats = [t.name for t in self._spec.tensors if t.is_float]
        return write_arrays(
            out,
            {
                name: after[name] - before[name] if name in moved else np.zeros_like(before[name])
                for name in floats
            },
        )

    def _load(self, base: Path) -> dict[str, NDArray[Any]]:
        arrays = read_arrays(base)
        if difference := self._spec.difference(spec_of(arrays)):
            raise ModelMismatchError(f"the base model does not fit the task: {difference}")
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self._network.load_state_dict(state)  # copies
        return arrays


def _tensors(examples: Examples, device: str, objective: Objective) -> tuple[Tensor, Tensor]:
    x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
    return x.to(device), y.to(device, objective.y_type)


def _batches(count: int, training: TrainParameters, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    steps = 0
    for _ in range(training.local_epochs):
        for indices in torch.split(torch.randperm(count, generator=generator), training.batch_size):
            if steps == training.max_steps:
                return
            steps += 1
            yield indices
