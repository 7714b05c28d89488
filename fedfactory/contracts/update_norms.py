"""How long an update may be when the signed terms name no bound: known before the round. Pure.

Site and coordinator both call `norm_bound`, with the same numbers, and compare the same norm
(norms.py), so both come to the same judgement. It never looks at other sites' updates: central
differential privacy, masked sums and streaming all need a judgement of each update by itself.
docs/privacy.md derives both rules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.privacy import MAX_NOISE

TIMES_BASE: Final = 10.0
SLACK: Final = 2.0
# P(|z| > sqrt(d) + t) <= exp(-t^2 / 2) for a standard normal z of d dimensions: below 2e-8 a step.
DEVIATIONS: Final = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The order's base: its L2 norm (norms.py) and how many floating-point elements it has."""

    norm_l2: float
    elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Noising:
    """One order under dp_sgd: `steps` noisy steps over `units` public units to train on.

    `expected_batch` = sampling rate x units divides each noised sum.
    """

    noise_multiplier: float
    steps: int
    units: int
    expected_batch: float


def norm_bound(
    terms: RunTerms, training: TrainParameters, base: Base, noising: Noising | None
) -> float:
    """Return the largest L2 norm that an update may have over all its tensors.

    `training` and `base` are the order's, `noising` is None without differential privacy. The
    signed `max_update_norm_l2` where there is one. Else, without differential privacy,
    10 x max(1, |base|): an update of more replaces the model rather than train it. Under dp_sgd

        2 x lr x steps / (1 - momentum) x clip x (units + sigma (sqrt(d) + 6)) / expected batch

    Each step's gradient is (sum of clipped gradients + sigma x clip x z) / expected batch: of at
    most `units` gradients of norm `clip`, and a standard normal z in d dimensions, whose norm is
    below sqrt(d) + 6 but once in 6e7 steps (Laurent and Massart 2000, lemma 1; Gaussian
    concentration). With momentum m each gradient moves the model by at most lr / (1 - m) in all
    later steps. The factor 2 leaves room for float32's rounding and the proximal term.
    """
    if terms.max_update_norm_l2 is not None:
        return terms.max_update_norm_l2
    if noising is None:
        return TIMES_BASE * max(1.0, base.norm_l2)
    assert terms.privacy is not None
    sigma = min(noising.noise_multiplier, MAX_NOISE)
    noise = sigma * (math.sqrt(base.elements) + DEVIATIONS)
    moved = training.lr * noising.steps / (1.0 - training.momentum)
    per_step = terms.privacy.clip_norm_l2 * (noising.units + noise) / noising.expected_batch
    return SLACK * moved * per_step
