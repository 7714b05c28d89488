"""A network's first layer that scales features by declared constants; it learns nothing."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / deviation, both (features,). Constants are no part of the model that travels."""

    def __init__(self, means: NDArray[np.float64], deviations: NDArray[np.float64]) -> None:
        super().__init__()
        self._means: Tensor
        self._deviations: Tensor
        kind = torch.float32
        self.register_buffer("_means", torch.tensor(means, dtype=kind), persistent=False)
        self.register_buffer("_deviations", torch.tensor(deviations, dtype=kind), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale x (batch, features)."""
        return (x - self._means) / self._deviations
