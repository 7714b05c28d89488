"""`python -m bench.dp [--quick]`: our DP-SGD beside a plain Opacus loop, and what the noise costs.

Ours goes in passes of one number of rows, adds up in float64, and draws from the operating system
what it draws; Opacus' loop does none of that. Both take the same number of steps from the same
model, with the same sampling rate, clipping norm and noise source: the peer is Opacus'
GradSampleModule and DPOptimizer as its tutorials use them, `add_noise` alone exchanged. One thread;
processor seconds, since the machine is shared; the two take turns, and a ratio is the median over
the turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import Mechanism
from fedfactory.privacy.chacha import KEY_BYTES, NoiseSource
from fedfactory.privacy.units import Units
from fedfactory.tasks.objectives import CLASSIFICATION
from fedfactory.tasks.private_learning import descend_privately
from fedfactory.tasks.rehearsal import Passes, rehearsal_of
from fedfactory.tasks.table import load_task

RECORDS = 479
TRAINING = TrainParameters(
    local_epochs=1, batch_size=1, lr=0.1, momentum=0.9, proximal_mu=0.0, max_steps=None
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network on the bundled digits and the batch expected; `mode` is ours, Opacus' is hooks."""

    model: str
    batch: int
    mode: str


CASES = [
    Case(model=model, batch=batch, mode="hooks") for model in ("mlp", "cnn") for batch in (64, 479)
]
GHOST = [Case(model="mlp", batch=64, mode="ghost"), Case(model="mlp", batch=479, mode="ghost")]


class OpacusNoise(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus' optimiser, with noise from our source in place of torch's."""

    def __init__(self, source: NoiseSource, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self._source = source

    def add_noise(self) -> None:
        """As Opacus', from another source."""
        for p in self.params:
            noise = np.empty(p.numel())
            self._source.fill_gaussians(noise)
            scaled = torch.from_numpy(noise).mul_(self.noise_multiplier * self.max_grad_norm)
            p.grad = (p.summed_grad + scaled.view_as(p)).to(p.dtype)


def opacus_steps(network: nn.Module, x: Tensor, y: Tensor, how: Mechanism) -> None:
    """Take the mechanism's steps in a loop as Opacus' documentation writes it."""
    source = NoiseSource(os.urandom(KEY_BYTES))
    module = GradSampleModule(network)
    optimizer = OpacusNoise(
        source,
        torch.optim.SGD(network.parameters(), lr=TRAINING.lr, momentum=TRAINING.momentum),
        noise_multiplier=how.noise_multiplier,
        max_grad_norm=how.clip_norm_l2,
        expected_batch_size=how.expected_batch,
    )
    module.train()
    for _ in range(how.steps):
        rows = torch.from_numpy(source.poisson_sample(len(y), how.sample_rate))
        optimizer.zero_grad()
        cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
    module.to_standard_module()


def our_steps(network: nn.Module, x: Tensor, y: Tensor, how: Mechanism, passes: Passes) -> None:
    """Take the mechanism's steps as the worker does."""
    descend_privately(
        network,
        CLASSIFICATION,
        x,
        y,
        units=Units(len(y), None),
        training=TRAINING,
        mechanism=how,
        source=NoiseSource(os.urandom(KEY_BYTES)),
        passes=passes,
    )


def compare(case: Case, steps: int, turns: int) -> None:
    task, parameters = load_task("digits"), {"model": case.model}
    found = task.bundled(parameters).take(np.arange(RECORDS))
    x, y = torch.from_numpy(found.x), torch.from_numpy(found.y)
    network = task.network(parameters)  # type: ignore[attr-defined]
    how = Mechanism(
        noise_multiplier=1.0,
        sample_rate=case.batch / RECORDS,
        steps=steps,
        expected_batch=case.batch,
        clip_norm_l2=1.0,
        grad_sample_mode=case.mode,  # type: ignore[arg-type]
    )
    passes = task.rehearse(parameters, "cpu", rehearsal_of(how))
    our_steps(network, x, y, how, passes)
    opacus_steps(network, x, y, how)
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(_seconds(lambda: our_steps(network, x, y, how, passes)) / steps)
        theirs.append(_seconds(lambda: opacus_steps(network, x, y, how)) / steps)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    parameters_count = sum(p.numel() for p in network.parameters())
    noise = _noise_seconds(parameters_count, turns)
    name = f"digits {case.model}, batch {case.batch}, {case.mode}, {passes.rows} rows"
    print(
        f"{name:<40} ours {1e3 * statistics.median(ours):7.2f} ms/step"
        f"   Opacus {1e3 * statistics.median(theirs):7.2f}"
        f"   ratio {statistics.median(ratios):5.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        f"   of it noise {1e3 * noise:5.2f} ms for {parameters_count} parameters",
        flush=True,
    )


def one_row_at_a_time(model: str, steps: int, turns: int) -> None:
    """Print what a device pays whose kernels round by the number of rows."""
    task, parameters = load_task("digits"), {"model": model}
    found = task.bundled(parameters).take(np.arange(RECORDS))
    x, y = torch.from_numpy(found.x), torch.from_numpy(found.y)
    network = task.network(parameters)  # type: ignore[attr-defined]
    how = Mechanism(
        noise_multiplier=1.0,
        sample_rate=64 / RECORDS,
        steps=steps,
        expected_batch=64,
        clip_norm_l2=1.0,
        grad_sample_mode="hooks",
    )
    full, single = task.rehearse(parameters, "cpu", rehearsal_of(how)), Passes(rows=1, threads=1)
    ratios = sorted(
        _seconds(lambda: our_steps(network, x, y, how, single))
        / _seconds(lambda: our_steps(network, x, y, how, full))
        for _ in range(turns)
    )
    print(
        f"digits {model}, batch 64, 1 row a pass: {statistics.median(ratios):.1f} x the time of"
        f" {full.rows} rows ({ratios[0]:.1f}-{ratios[-1]:.1f})",
        flush=True,
    )


def noise_alone(count: int, turns: int) -> None:
    """Print what a number of noise costs, beside torch's generator and Opacus' secure sum."""
    ours = _noise_seconds(count, turns)
    once = statistics.median(
        _seconds(lambda: torch.normal(0.0, 1.0, (count,))) for _ in range(turns)
    )
    for name, seconds in (
        ("ours: ChaCha20, float64, four draws", ours),
        ("torch.normal, float32, one draw (not secure)", once),
        ("torch.normal, four draws (Opacus' sum; not secure)", 4 * once),
    ):
        print(f"{name:<52} {1e9 * seconds / count:6.1f} ns a parameter", flush=True)


def _noise_seconds(count: int, turns: int) -> float:
    source, out = NoiseSource(os.urandom(KEY_BYTES)), np.empty(count)
    return statistics.median(_seconds(lambda: source.fill_gaussians(out)) for _ in range(turns))


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.dp", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps: a trial")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Of the peer: its first layer's input needs no gradient.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    steps, turns = (5, 3) if options.quick else (20, 9)
    noise_alone(1_000_000, turns)
    for case in [*CASES, *GHOST]:
        compare(case, steps, turns)
    for model in ("mlp", "cnn"):
        one_row_at_a_time(model, max(2, steps // 4), turns)


if __name__ == "__main__":
    main()
