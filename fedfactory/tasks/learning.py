"""Training and measuring a torch classifier on one site's examples. Bit-reproducible on a CPU.

SGD is written out: building a `torch.optim` optimiser imports torch._dynamo, 1 to 2 s at a worker's
first order. Velocity starts at zero in every round: a site keeps no state between rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedfactory.contracts.model import ModelSpec
from fedfactory.contracts.orders import TrainParameters
from fedfactory.tasks.examples import Examples, SiteData
from fedfactory.tasks.task import ModelMismatchError, Outcome
from fedfactory.wire.arrays import read_arrays, spec_of, write_arrays

EVALUATION_BATCH = 2048


def arrays_of(network: nn.Module) -> dict[str, NDArray[Any]]:
    """Return a network's parameters and buffers as arrays (views on CPU tensors), by name."""
    return {name: t.detach().cpu().numpy() for name, t in network.state_dict().items()}


class Learning:
    """One network and one site's data, ready to work."""

    def __init__(self, network: nn.Module, data: SiteData, device: str) -> None:
        self._network = network.to(device)
        self._spec = spec_of(arrays_of(network))
        self._device = device
        self._train = _tensors(data.train, device)
        self._test = _tensors(data.test, device)

    @property
    def spec(self) -> ModelSpec:
        """The network's tensors."""
        return self._spec

    def train(self, *, base: Path, out: Path, training: TrainParameters, seed: int) -> Outcome:
        """Train from `base`; write trained minus base, float tensors only, to `out`.

        FedProx's term mu/2 ||w - w0||^2 (Li et al. 2020, section 3.2) enters as its gradient.
        """
        before = self._load(base)
        self._network.train()
        parameters: list[Tensor] = [p for p in self._network.parameters() if p.requires_grad]
        anchors = [p.detach().clone() for p in parameters] if training.proximal_mu else []
        velocity = [torch.zeros_like(p) for p in parameters]
        x, y = self._train
        loss_sum = torch.zeros((), device=self._device)
        correct = torch.zeros((), device=self._device, dtype=torch.int64)
        seen = 0
        for indices in _batches(len(y), training, seed):
            xs, ys = x[indices], y[indices]
            scores = self._network(xs)
            loss = cross_entropy(scores, ys)
            gradients = list(torch.autograd.grad(loss, parameters))
            with torch.no_grad():
                if anchors:
                    drift = [p - a for p, a in zip(parameters, anchors, strict=True)]
                    torch._foreach_add_(gradients, drift, alpha=training.proximal_mu)
                torch._foreach_mul_(velocity, training.momentum)
                torch._foreach_add_(velocity, gradients)
                torch._foreach_add_(parameters, velocity, alpha=-training.lr)
                loss_sum += loss * len(ys)
                correct += (scores.argmax(1) == ys).sum()
            seen += len(ys)
        after = arrays_of(self._network)
        floats = [t.name for t in self._spec.tensors if t.is_float]
        update = write_arrays(out, {name: after[name] - before[name] for name in floats})
        metrics = {"loss": float(loss_sum) / seen, "accuracy": int(correct) / seen}
        return Outcome(examples=min(seen, len(y)), metrics=metrics, update=update)

    def evaluate(self, *, base: Path) -> Outcome:
        """Return loss and accuracy of `base` on the test split."""
        self._load(base)
        self._network.eval()
        x, y = self._test
        loss_sum, correct = 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(y), EVALUATION_BATCH):
                scores = self._network(x[start : start + EVALUATION_BATCH])
                ys = y[start : start + EVALUATION_BATCH]
                loss_sum += float(cross_entropy(scores, ys, reduction="sum"))
                correct += int((scores.argmax(1) == ys).sum())
        metrics = {"loss": loss_sum / len(y), "accuracy": correct / len(y)}
        return Outcome(examples=len(y), metrics=metrics, update=None)

    def _load(self, base: Path) -> dict[str, NDArray[Any]]:
        arrays = read_arrays(base)
        if difference := self._spec.difference(spec_of(arrays)):
            raise ModelMismatchError(f"the base model does not fit the task: {difference}")
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self._network.load_state_dict(state)  # copies
        return arrays


def _tensors(examples: Examples, device: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(examples.x).to(device), torch.from_numpy(examples.y).to(device)


def _batches(count: int, training: TrainParameters, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    steps = 0
    for _ in range(training.local_epochs):
        for indices in torch.split(torch.randperm(count, generator=generator), training.batch_size):
            if steps == training.max_steps:
                return
            steps += 1
            yield indices
