"""What a streaming strategy decides. Selection, clipping, noise and quorum belong to the round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.updates import Update


class StreamingStrategy(Protocol):
    """A server update computed from the weighted mean of the deltas, tensor by tensor.

    The accumulator folds verified updates in canonical site order and calls `apply` on chunks,
    so memory does not grow with the number of sites.
    """

    def train_parameters(self) -> Mapping[str, float]:
        """Training parameters this strategy sets at every site (FedProx: proximal_mu)."""

    def weight(self, update: Update) -> float:
        """The update's weight in the mean: finite, above 0 for it to count."""

    def apply(
        self, base: NDArray[np.float64], mean_delta: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The new values from the base and the mean delta; same shape (flat chunks)."""
