"""Federated optimisation for heterogeneous sites: FedAvg with a proximal term at the site."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.updates import Update
from strategies.weighting import Weighting, check_weighting, weight_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx:
    """FedProx (Li et al. 2020, Algorithm 2): sites minimise F_k(w) + mu/2 ||w - w_t||^2.

    The server's step is FedAvg's; `mu` = 0 is FedAvg. `weighting`: 'examples' or 'uniform' (the
    paper draws sites by their share of the examples and then averages uniformly). No memory.
    """

    mu: float
    weighting: Weighting

    def __post_init__(self) -> None:
        number = isinstance(self.mu, int | float) and not isinstance(self.mu, bool)
        if not (number and math.isfinite(self.mu) and 0 <= self.mu <= 1e6):
            raise ValueRangeError("strategy.mu", self.mu, "a number from 0 to 1e6")
        check_weighting(self.weighting)

    def train_parameters(self) -> Mapping[str, float]:
        """Every site adds the proximal term."""
        return {"proximal_mu": float(self.mu)}

    def weight(self, update: Update) -> float:
        """Return n_k."""
        return weight_of(update, self.weighting)

    def apply(
        self, base: NDArray[np.float64], mean_delta: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return base + mean_delta (flat chunks of equal length)."""
        return base + mean_delta
