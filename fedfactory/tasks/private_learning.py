"""DP-SGD (Abadi et al. 2016, algorithm 1): the steps reserved, with noise of the site's own.

Opacus gives the per-record gradients and the optimiser's frame. Sampling, clipping of what is not
finite, noise and the order of things are here: Opacus' own noise and batches repeat with torch's
seed, and its sampling rate follows the loader's length.
"""

from __future__ import annotations

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import Mechanism
from fedfactory.privacy.chacha import NoiseSource
from fedfactory.privacy.units import Units
from fedfactory.tasks.clipped_gradients import open_gradients, trainable
from fedfactory.tasks.descent import Descent
from fedfactory.tasks.fixed_rows import FixedRows
from fedfactory.tasks.kernels import deterministic_kernels
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.rehearsal import Passes
from fedfactory.tasks.step_randomness import secret_randomness


def descend_privately(
    network: nn.Module,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    *,
    units: Units,
    training: TrainParameters,
    mechanism: Mechanism,
    source: NoiseSource,
    passes: Passes,
) -> None:
    """Move the network's trainable parameters by exactly `mechanism.steps` noisy steps.

    A step draws units by Poisson sampling, adds up their clipped gradients, adds noise, divides by
    `mechanism.expected_batch`; FedProx's term and momentum come after. Nobody drawn is a noisy
    step too. x: (records, *features), y: (records,).

    Raises:
        PrivateModelError: the model has a layer that DP-SGD cannot train.
    """
    gradients = open_gradients(network, objective, mechanism.grad_sample_mode)
    optimizer = NoisyOptimizer(Descent(trainable(network), training), mechanism, source)
    fixed = FixedRows(x, y, passes.rows)
    clip = mechanism.clip_norm_l2
    try:
        with deterministic_kernels(passes.threads), secret_randomness(source, x.device) as draw:
            # A model that cannot fails here, on null records: no failure tells if any was drawn.
            gradients.sums(*fixed.null(), 0, clip)
            for _ in range(mechanism.steps):
                drawn = torch.from_numpy(units.sample(source, mechanism.sample_rate)).to(x.device)
                for rows_x, rows_y, count in fixed.passes(drawn):
                    draw()
                    optimizer.add(gradients.sums(rows_x, rows_y, count, clip))
                optimizer.step()
    finally:
        gradients.close()
        optimizer.close()


class NoisyOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus' optimiser with noise from a NoiseSource, over sums that are clipped already."""

    def __init__(self, descent: Descent, mechanism: Mechanism, source: NoiseSource) -> None:
        super().__init__(
            descent,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip_norm_l2,
            expected_batch_size=mechanism.expected_batch,
        )
        self._source = source
        self._noise = np.empty(max(p.numel() for p in self.params))
        self._clear()

    accumulated_iterations = 1  # pieces of a batch are one batch

    def add(self, sums: list[Tensor]) -> None:
        """Add a piece's clipped gradients to the step's sum."""
        for parameter, gradient in zip(self.params, sums, strict=True):
            parameter.summed_grad += gradient

    def add_noise(self) -> None:
        """Put sum plus noise into `grad`: both float64, then rounded to the model's type."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = self._noise[: parameter.numel()]
            self._source.fill_gaussians(noise)
            total = torch.from_numpy(noise).to(parameter.device).view_as(parameter)
            total.mul_(deviation).add_(parameter.summed_grad)
            parameter.grad = total.to(parameter.dtype)

    def step(self) -> None:
        """Release the step's noisy mean, and descend by it."""
        self.add_noise()
        self.scale_grad()
        self.original_optimizer.step([p.grad for p in self.params])
        self._clear()

    def close(self) -> None:
        """Leave no sum without noise on the network, also when a step broke off."""
        for parameter in self.params:
            parameter.grad = None
            del parameter.summed_grad

    def _clear(self) -> None:
        for parameter in self.params:
            parameter.grad = None
            parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float64)
