"""How often a site samples in a round: from what is public alone, never from its true count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.update_norms import Noising

EVALUATION_SHARE: Final = 0.2  # of a site's units, kept apart to evaluate on
ROWS_STEP: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """`steps` Poisson samples a round, each unit in each with probability `sample_rate`.

    `expected_batch` = sample_rate x public units to train on.
    """

    sample_rate: float
    steps: int
    expected_batch: float

    @property
    def pass_rows(self) -> int:
        """How many rows a pass through the network should have: what most samples fit into.

        The multiple of 16 next above the expected batch plus two standard deviations of a sample.
        """
        deviation = math.sqrt(self.expected_batch * (1.0 - self.sample_rate))
        return _round_up(self.expected_batch + 2.0 * deviation)


def evaluation_size(public_size: int) -> int:
    """Return how many of `public_size` units a site evaluates on."""
    return max(1, round(EVALUATION_SHARE * public_size))


def sampling(training: TrainParameters, public_size: int) -> Sampling:
    """Return the sampling of one round: whole epochs of `batch_size` over the units to train on.

    `max_steps` caps the steps. A batch larger than the population samples everyone in every step.
    """
    units = max(1, public_size - evaluation_size(public_size))
    rate = min(1.0, training.batch_size / units)
    steps = training.local_epochs * math.ceil(units / training.batch_size)
    if training.max_steps is not None:
        steps = min(steps, training.max_steps)
    return Sampling(sample_rate=rate, steps=steps, expected_batch=rate * units)


def noising(training: TrainParameters, public_size: int, noise_multiplier: float) -> Noising:
    """Return what bounds the norm of one order's update under dp_sgd at a site of this size."""
    once = sampling(training, public_size)
    return Noising(
        noise_multiplier=noise_multiplier,
        steps=once.steps,
        units=max(1, public_size - evaluation_size(public_size)),
        expected_batch=once.expected_batch,
    )


def evaluation_pass_rows(public_examples: int) -> int:
    """Return how many rows a pass of an evaluation should have: all public records, in one."""
    return _round_up(public_examples)


def _round_up(records: float) -> int:
    return ROWS_STEP * max(1, math.ceil(records / ROWS_STEP))
