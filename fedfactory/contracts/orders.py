"""What a coordinator asks of a site: a task by name and parameters by value. Never code."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedfactory.contracts.bounds import Ordinal, Real, Seed, Whole
from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.privacy import PrivacyPlan

# Where an order, and its reply, lie in a Flower message: one config record with one field of JSON.
MESSAGE_RECORD: Final = "fedfactory"
MESSAGE_FIELD: Final = "json"

Scalar = str | Whole | Real | bool | None
WorkKind = Literal["train", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainParameters:
    """How a site trains in one round.

    `max_steps` caps the optimiser steps of a round (None: whole epochs).
    `proximal_mu` is FedProx's mu (Li et al. 2020, section 3.2); 0 is plain local SGD.
    """

    local_epochs: Ordinal
    batch_size: Ordinal
    lr: Real
    momentum: Real
    proximal_mu: Real
    max_steps: Ordinal | None

    def __post_init__(self) -> None:
        for key in ("local_epochs", "batch_size"):
            value = getattr(self, key)
            if not 1 <= value <= 1_000_000:
                raise ValueRangeError(key, value, "a whole number from 1 to 1000000")
        if not (math.isfinite(self.lr) and 0 < self.lr <= 1000):
            raise ValueRangeError("lr", self.lr, "a number above 0, at most 1000")
        if not (math.isfinite(self.momentum) and 0 <= self.momentum < 1):
            raise ValueRangeError("momentum", self.momentum, "a number from 0 to below 1")
        if not (math.isfinite(self.proximal_mu) and 0 <= self.proximal_mu <= 1e6):
            raise ValueRangeError("proximal_mu", self.proximal_mu, "a number from 0 to 1e6")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueRangeError("max_steps", self.max_steps, "a whole number from 1, or null")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One piece of work for one site in one round.

    `base` names the model to start from. `seed` is the run's; the site derives its own generator
    from (seed, site, round, kind). `training` is None for `evaluate`. `privacy` is None where the
    run asks for none. `terms_digest` names the signed plan that the order is part of.
    """

    coordinator: str
    run_id: str
    round: Whole
    kind: WorkKind
    site: str
    task: str
    task_parameters: Mapping[str, Scalar]
    training: TrainParameters | None
    base: BlobRef
    seed: Seed
    privacy: PrivacyPlan | None
    terms_digest: str

    def key(self) -> WorkKey:
        """The one key of this work (law 4): never Flower's run or message id."""
        return WorkKey(
            coordinator=self.coordinator,
            run_id=self.run_id,
            round=self.round,
            kind=self.kind,
            site=self.site,
            order_digest=digest_of(self),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkKey:
    """Names one unit of work. Asked twice under any delivery, it is done once."""

    coordinator: str
    run_id: str
    round: Whole
    kind: WorkKind
    site: str
    order_digest: str
