"""SGD with momentum and FedProx's term, written out: one step from given gradients.

Building a `torch.optim` optimiser imports torch._dynamo, 1 to 2 s at a worker's first order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedfactory.contracts.orders import TrainParameters


class Descent:
    """Moves `parameters`. Velocity starts at zero: a site keeps no state between rounds.

    FedProx's term mu/2 ||w - w0||^2 (Li et al. 2020, section 3.2) enters as its gradient, added to
    the gradients given: under differential privacy those are noised already, and the term, which
    depends on no record, stays outside of clipping.
    """

    def __init__(self, parameters: Sequence[Tensor], training: TrainParameters) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters}]  # as Opacus reads them
        self._parameters = list(parameters)
        self._training = training
        self._anchors = [p.detach().clone() for p in parameters] if training.proximal_mu else []
        self._velocity = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """Descend one step. `gradients`, one a parameter, are used up."""
        if self._anchors:
            drift = [p - a for p, a in zip(self._parameters, self._anchors, strict=True)]
            torch._foreach_add_(gradients, drift, alpha=self._training.proximal_mu)
        torch._foreach_mul_(self._velocity, self._training.momentum)
        torch._foreach_add_(self._velocity, gradients)
        torch._foreach_add_(self._parameters, self._velocity, alpha=-self._training.lr)
