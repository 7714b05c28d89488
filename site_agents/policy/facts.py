"""What a clause is asked with, and what it answers. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.plans import OrderEnvelope
from site_agents.policy.values import MINUTES_OF_DAY, Policy

MAX_SHOWN: Final = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the site knows beside the order.

    `now` is Unix seconds, `local_minute` the minute of the day in the policy's time zone. The keys
    are fingerprints of those whose signatures over the sending and over its plan hold ("" where
    none does), `revoked` those of operators whom another one revoked.
    `train_examples` and `evaluate_examples` count the records the order would work on,
    None for a task that reads no data. `gpu_hours_of_run` is what the run has used here so far.
    `finished`: the work was done before, and only whether it may leave is left to judge.
    `base` is the largest |value| in each floating-point tensor of the base model (not finite where
    a value is not), None before it is fetched.
    """

    now: float
    local_minute: int
    coordinator_key: str
    operator_key: str
    revoked: frozenset[str]
    site: str
    train_examples: int | None
    evaluate_examples: int | None
    gpu_hours_of_run: float
    finished: bool = False
    base: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        assert 0 <= self.local_minute < MINUTES_OF_DAY


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a clause fails. `key` names the exact key, where the clause's own covers several."""

    sentence: str
    key: str | None = None


Check = Callable[[Policy, OrderEnvelope, Facts], Finding | None]


def shown(text: str) -> str:
    """Return a text of a coordinator's choosing, safe to print: ASCII, quoted, cut."""
    return ascii(text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "...")


def evaluations(sending: OrderEnvelope) -> int:
    """Return how many evaluations the plan allows: none under privacy without noise for them."""
    terms = sending.signed.terms
    noised = terms.privacy is None or terms.privacy.evaluation_noise_multiplier is not None
    return terms.rounds if terms.evaluate and noised else 0


def steps_cap(training: TrainParameters) -> float:
    """Return how many optimiser steps are allowed: infinite for whole epochs."""
    return math.inf if training.max_steps is None else training.max_steps
