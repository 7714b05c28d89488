"""What a network is trained for and how it is measured, record by record.

y: (batch,) labels, int64 for classes, float32 for numbers. outputs: (batch, classes) scores, or
(batch, 1) predictions. Everything per record is (batch,), since under differential privacy each
record's share is bounded on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from fedfactory.tasks.examples import DataSchema


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A loss to descend, and one more figure a record gets, reported under the name `metric`.

    `mean_loss(outputs, y)` is the loss of a batch; `losses` and `scores` have one entry a record.
    `score_bound(loss_clip)` bounds a score, from 0, where the loss is clipped to `loss_clip`.
    """

    y_type: torch.dtype
    mean_loss: Callable[[Tensor, Tensor], Tensor]
    losses: Callable[[Tensor, Tensor], Tensor]
    metric: str
    scores: Callable[[Tensor, Tensor], Tensor]
    score_bound: Callable[[float], float]


def _correct(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs.argmax(1) == y


def _absolute_errors(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs.flatten() - y).abs()


CLASSIFICATION: Final = Objective(
    y_type=torch.int64,
    mean_loss=cross_entropy,
    losses=lambda outputs, y: cross_entropy(outputs, y, reduction="none"),
    metric="accuracy",
    scores=_correct,
    score_bound=lambda loss_clip: 1.0,  # noqa: ARG005  a record is right or wrong, 1 or 0
)
# The loss is a squared error: clipped to L, it clips the absolute error to sqrt(L).
REGRESSION: Final = Objective(
    y_type=torch.float32,
    mean_loss=lambda outputs, y: mse_loss(outputs.flatten(), y),
    losses=lambda outputs, y: mse_loss(outputs.flatten(), y, reduction="none"),
    metric="mae",
    scores=_absolute_errors,
    score_bound=math.sqrt,
)


def objective_of(schema: DataSchema) -> Objective:
    """Return what a label is learned by: cross-entropy for classes, squared error for a number."""
    return REGRESSION if schema.classes is None else CLASSIFICATION
