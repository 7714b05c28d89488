"""A network's first layer, which brings features into form by declared constants; learns nothing.

Constants are no part of the model that travels: every site has them from the task's parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn


class Standardise(nn.Module):
    """(x - mean) / deviation: x (batch, features, ...), mean and deviation (features,)."""

    def __init__(self, means: ArrayLike, deviations: ArrayLike) -> None:
        super().__init__()
        self._means: Tensor
        self._deviations: Tensor
        self.register_buffer("_means", _constant(means), persistent=False)
        self.register_buffer("_deviations", _constant(deviations), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale x."""
        shape = (-1, *[1] * (x.dim() - 2))
        return (x - self._means.view(shape)) / self._deviations.view(shape)


class TableInput(nn.Module):
    """Scaled numbers, then one column of 0 and 1 for each category of each categorical column.

    x (batch, numbers + categoricals): numbers as they come, categories as their index.
    """

    def __init__(
        self, means: Sequence[float], deviations: Sequence[float], categories: Sequence[int]
    ) -> None:
        super().__init__()
        self.width = len(means) + sum(categories)
        self._numbers = len(means)
        self._scale = Standardise(means, deviations)
        self._of_column: Tensor
        self._wanted: Tensor
        columns = [np.full(count, i, np.int64) for i, count in enumerate(categories)]
        wanted = [np.arange(count, dtype=np.float32) for count in categories]
        self.register_buffer("_of_column", _joined(columns, np.int64), persistent=False)
        self.register_buffer("_wanted", _joined(wanted, np.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, width)."""
        numbers = self._scale(x[:, : self._numbers])
        chosen = x[:, self._numbers :].index_select(1, self._of_column)
        return torch.cat([numbers, (chosen == self._wanted).to(numbers.dtype)], dim=1)


def _constant(values: ArrayLike) -> Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64), dtype=torch.float32)


def _joined(parts: Sequence[NDArray[Any]], kind: type) -> Tensor:
    return torch.from_numpy(np.concatenate([np.empty(0, kind), *parts]))
