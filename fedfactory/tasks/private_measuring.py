"""One noised evaluation under differential privacy: two sums, each record's share bounded."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from fedfactory.contracts.privacy import Measurement
from fedfactory.privacy.chacha import NoiseSource
from fedfactory.privacy.units import Units
from fedfactory.tasks.fixed_rows import FixedRows
from fedfactory.tasks.kernels import deterministic_kernels
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.rehearsal import Passes
from fedfactory.tasks.step_randomness import secret_randomness


def measure_privately(
    network: nn.Module,
    objective: Objective,
    x: Tensor,
    y: Tensor,
    *,
    units: Units,
    measurement: Measurement,
    source: NoiseSource,
    passes: Passes,
) -> Mapping[str, float]:
    """Return the noised mean loss and score over `measurement.public_examples` records.

    Each unit contributes one row. Its loss is clipped to 0..loss_clip and its score to 0..what the
    objective says; scaled to 1, the two sums have L2 sensitivity sqrt(2), so each gets Gaussian
    noise of noise_multiplier x sqrt(2). What noise moved out of range is put back.
    """
    loss_bound = measurement.loss_clip
    score_bound = objective.score_bound(loss_bound)
    sums = np.zeros(2)
    network.eval()
    drawn = torch.from_numpy(units.one_row_each(source)).to(x.device)
    with (
        torch.inference_mode(),
        deterministic_kernels(passes.threads),
        secret_randomness(source, x.device) as draw,
    ):
        fixed = FixedRows(x, y, passes.rows)
        # What a network does at its first pass only, it does on null records, as in training.
        network(fixed.null()[0])
        for rows_x, rows_y, count in fixed.passes(drawn):
            draw()
            outputs = network(rows_x)
            sums += (
                _bounded_sum(objective.losses(outputs, rows_y)[:count], loss_bound),
                _bounded_sum(objective.scores(outputs, rows_y)[:count], score_bound),
            )
    noise = np.empty(2)
    source.fill_gaussians(noise)
    sums += noise * (measurement.noise_multiplier * math.sqrt(2))
    loss, score = np.clip(sums / measurement.public_examples, 0.0, 1.0)
    return {"loss": float(loss * loss_bound), objective.metric: float(score * score_bound)}


def _bounded_sum(shares: Tensor, bound: float) -> float:
    """Add up shares (batch,) as parts of `bound`, from 0 to 1; what is no number counts as 1."""
    parts = (shares.double() / bound).nan_to_num(nan=1.0).clamp(0.0, 1.0)
    return float(parts.sum())
