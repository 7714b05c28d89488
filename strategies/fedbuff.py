"""Buffered asynchronous federated averaging: no site waits for another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.updates import Update


@dataclass(frozen=True, slots=True, kw_only=True)
class FedBuff:
    """FedBuff (Nguyen et al. 2022, Algorithm 1): w <- w + server_lr / K sum_k s(tau_k) delta_k.

    K updates (rounds.buffer) make a new model; tau_k counts the models made since the one that
    update k started from, and s(tau) = 1 / sqrt(1 + tau), as in the paper's experiments. Every
    update counts the same, whatever its number of examples. No memory.
    """

    server_lr: float

    def __post_init__(self) -> None:
        number = isinstance(self.server_lr, int | float) and not isinstance(self.server_lr, bool)
        if not (number and math.isfinite(self.server_lr) and 0 < self.server_lr <= 1e6):
            raise ValueRangeError("strategy.server_lr", self.server_lr, "a number above 0, to 1e6")

    def train_parameters(self) -> Mapping[str, float]:
        """Sites train as the run says."""
        return {}

    def weight(self, update: Update) -> float:  # noqa: ARG002
        """Return 1: the mean is over the buffer."""
        return 1.0

    def stale_weight(self, update: Update, staleness: int) -> float:  # noqa: ARG002
        """Return s(tau)."""
        return 1.0 / math.sqrt(1.0 + staleness)

    def apply(
        self, base: NDArray[np.float64], mean_delta: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return base + server_lr mean_delta (flat chunks of equal length)."""
        return base + self.server_lr * mean_delta
