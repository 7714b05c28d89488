"""What a streaming strategy decides. Selection, clipping, noise and quorum belong to the round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.updates import Update


class StreamingStrategy(Protocol):
    """A server update computed from the weighted mean of the deltas, tensor by tensor.

    The accumulator folds verified updates in canonical site order and calls `apply` on chunks,
    so memory does not grow with the number of sites. What a strategy remembers is saved after each
    round: its attributes, or what its `state_dict()` returns, for its `load_state_dict(state)`
    (docs/researcher.md).
    """

    def train_parameters(self) -> Mapping[str, float]:
        """Training parameters this strategy sets at every site (FedProx: proximal_mu)."""

    def weight(self, update: Update) -> float:
        """The update's weight in the mean: finite, above 0 for it to count."""

    def apply(
        self, base: NDArray[np.float64], mean_delta: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The new values from the base and the mean delta; same shape (flat chunks)."""


@runtime_checkable
class StaleStrategy(StreamingStrategy, Protocol):
    """A strategy that says how an update enters whose base is no longer the newest model.

    Only such a one runs with rounds.mode=async.
    """

    def stale_weight(self, update: Update, staleness: int) -> float:
        """The update's weight in the sum, `staleness` models (from 0) after its base.

        Finite, from 0, never rising with staleness, and `weight(update)` at 0; the sum is divided
        by the weights that the updates would have if none were stale.
        """
