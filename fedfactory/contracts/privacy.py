"""Differential privacy as both sides speak of it: what a run asks, what a site does, what it says.

Neighbouring data sets: one privacy unit (a row, or all rows of one `unit`) replaced by null, with a
`public_size` of units that the site's administrator declares public. Sampling rate, steps and
expected batch derive from it alone; the true count enters nothing that leaves.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, get_args

from fedfactory.contracts.bounds import (
    Count,
    Fraction,
    Label,
    Ordinal,
    Positive,
    Range,
    check_fields,
)
from fedfactory.contracts.errors import ProtocolError, UnknownNameError, ValueRangeError

GradSampleMode = Literal["hooks", "ghost"]
MAX_NOISE: Final = 1000.0
MAX_PUBLIC_SIZE: Final = 10**9  # units of one site
MAX_NAME: Final = 200
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
LEAST_CLIP: Final = 1e-6  # far below it, float32 rounds a gradient to more than its bound
MAX_EVALUATION_NOISE: Final = 1e6
Epsilon = Annotated[float, Range(0, 1e12)]
Delta = Annotated[float, Range(0, 1 - 1e-9, above=True)]
Noise = Annotated[float, Range(0, MAX_EVALUATION_NOISE, above=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What a run asks: DP-SGD (Abadi et al. 2016) for a run's epsilon, or with a given noise.

    Exactly one of `target_epsilon` and `noise_multiplier` (standard deviation over clipping norm)
    is set. `clip_norm_l2` bounds each unit's gradient (flat clipping). Sites evaluate only if
    `evaluation_noise_multiplier` is set: correct-counts and sums of losses, each loss clipped to
    0..`evaluation_loss_clip`, with Gaussian noise.
    """

    target_epsilon: Positive | None
    noise_multiplier: Positive | None
    delta: Fraction
    clip_norm_l2: Positive
    grad_sample_mode: GradSampleMode
    evaluation_noise_multiplier: Positive | None
    evaluation_loss_clip: Positive

    def __post_init__(self) -> None:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueRangeError(
                "privacy.target_epsilon",
                self.target_epsilon,
                "exactly one of privacy.target_epsilon and privacy.noise_multiplier",
            )
        if self.grad_sample_mode not in get_args(GradSampleMode):
            key, known = "privacy.grad_sample_mode", get_args(GradSampleMode)
            raise UnknownNameError(key, self.grad_sample_mode, known)
        _check("target_epsilon", self.target_epsilon, 1000.0)
        _check("noise_multiplier", self.noise_multiplier, MAX_NOISE)
        _check(
            "evaluation_noise_multiplier", self.evaluation_noise_multiplier, MAX_EVALUATION_NOISE
        )
        _check("clip_norm_l2", self.clip_norm_l2, 1e6, LEAST_CLIP)
        _check("evaluation_loss_clip", self.evaluation_loss_clip, 1e6)
        if not 0 < self.delta < 1:
            raise ValueRangeError("privacy.delta", self.delta, "a number between 0 and 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """What the ledger reserved and a worker executes: `steps` noisy steps of DP-SGD.

    Each unit enters a step with probability `sample_rate` (Poisson sampling); the noised sum of
    clipped gradients is divided by `expected_batch` = sample_rate x public units to train on.
    """

    noise_multiplier: Positive
    sample_rate: Fraction
    steps: Ordinal
    expected_batch: Positive
    clip_norm_l2: Positive
    grad_sample_mode: GradSampleMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One noised evaluation: counts of `public_examples` records, losses clipped to `loss_clip`.

    The pair (correct, loss / loss_clip) has L2 sensitivity sqrt(2) x records a unit may hold (1:
    with a `unit` column each unit contributes one record), so each of the two gets noise of
    noise_multiplier x sqrt(2).
    """

    noise_multiplier: Positive
    loss_clip: Positive
    public_examples: Ordinal


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpent:
    """What a site says of its guarantee after a piece of work: public values and the accountant's.

    `epsilon_run` composes all the site did for this run so far, at `delta`.
    """

    epsilon_run: Epsilon
    delta: Delta
    noise_multiplier: Noise
    sample_rate: Fraction
    steps: Ordinal
    unit: Literal["row", "unit"]
    accountant: Label


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyStanding:
    """What holds for a run and its population when an answer leaves a site; public values alone.

    `epsilon_run` composes, at `delta`, every attempt of the run's work at the site, also those
    that failed or whose worker died. `unprotected_updates` updates of the population left the site
    without differential privacy, the last on `unprotected_on` (YYYY-MM-DD, UTC): then no bound
    holds for the population. 0 and None where none did.

    Raises:
        ProtocolError: a value is out of range.
    """

    epsilon_run: Epsilon
    delta: Delta
    unit: str
    accountant: str
    unprotected_updates: Count
    unprotected_on: str | None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in (self.unit, self.accountant):
            if not (len(name) <= MAX_NAME and name.isprintable()):
                raise ProtocolError("PrivacyStanding: expected short printable names")
        on = self.unprotected_on
        if (on is None) != (self.unprotected_updates == 0) or (on and not _DATE.fullmatch(on)):
            raise ProtocolError("PrivacyStanding.unprotected_on: expected a date where updates are")


def no_bound(updates: int, on: str) -> str:
    """Return what every budget says of a population whose updates left without privacy.

    >>> no_bound(1, "2026-12-01")
    'no bound: 1 update left without privacy, last on 2026-12-01'
    """
    plural = "" if updates == 1 else "s"
    return f"no bound: {updates} update{plural} left without privacy, last on {on}"


def _check(name: str, value: float | None, high: float, low: float = 0.0) -> None:
    if value is not None and not (math.isfinite(value) and low < value <= high):
        expected = f"a number above {low:g}, at most {high:g}"
        raise ValueRangeError(f"privacy.{name}", value, expected)
