"""Federated averaging."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.updates import Update
from strategies.weighting import Weighting, check_weighting, weight_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAvg:
    """FedAvg (McMahan et al. 2017, Algorithm 1): w <- w + sum_k (n_k / n) delta_k.

    `weighting`: 'examples' takes n_k as the site's number of examples, 'uniform' as 1.
    No memory from round to round.
    """

    weighting: Weighting

    def __post_init__(self) -> None:
        check_weighting(self.weighting)

    def train_parameters(self) -> Mapping[str, float]:
        """Sites train as the run says."""
        return {}

    def weight(self, update: Update) -> float:
        """Return n_k."""
        return weight_of(update, self.weighting)

    def apply(
        self, base: NDArray[np.float64], mean_delta: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return base + mean_delta (flat chunks of equal length)."""
        return base + mean_delta
