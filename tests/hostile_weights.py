"""Base models of a coordinator's choice that make a record's gradient depend on the others.

The first layer's outputs come in threes, A, E and O with A = E + O in real numbers; what a later
layer sees of A - E - O is the rounding of one matrix product, times a gain. Its kernel rounds by
the number of rows it is given.
"""

from __future__ import annotations

import torch
from torch import nn

from fedfactory.tasks.table import load_task

SCALE = 1.0e3
GAIN = 1.0e4


def hostile_mlp(seed: int) -> nn.Module:
    """The digits MLP, whose two large classes swap with the sign of a rounding error."""
    generator = torch.Generator().manual_seed(seed)
    network = load_task("digits").network({"model": "mlp"})  # type: ignore[attr-defined]
    one, two, three = network[0], network[2], network[4]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        weights = SCALE * (0.5 + torch.rand(64, generator=generator))
        half = torch.rand(64, generator=generator) < 0.5
        one.weight[0] = weights
        one.weight[1] = weights * half
        one.weight[2] = weights * ~half
        two.weight[0, :3] = GAIN * torch.tensor([1.0, -1.0, -1.0])
        two.weight[1, :3] = GAIN * torch.tensor([-1.0, 1.0, 1.0])
        two.bias[2] = 1.0
        three.weight[0, 0], three.weight[0, 1] = 1.0, -1.0
        three.weight[1, 0], three.weight[1, 1] = -1.0, 1.0
    return network


def hostile(network: nn.Module, seed: int) -> nn.Module:
    """Any network: triples in its first matrix, differences of triples in all later ones."""
    generator = torch.Generator().manual_seed(seed)
    matrices = [p for p in network.parameters() if p.dim() > 1]
    with torch.no_grad():
        for number, matrix in enumerate(matrices):
            draw = torch.rand(matrix.shape, generator=generator)
            if number == 0:
                half = torch.rand(matrix.shape, generator=generator) < 0.5
                for row in range(0, len(matrix) - 2, 3):
                    matrix[row] = SCALE * (0.5 + draw[row])
                    matrix[row + 1] = matrix[row] * half[row]
                    matrix[row + 2] = matrix[row] * ~half[row]
                continue
            signs = torch.tensor([1.0, -1.0, -1.0]).repeat(matrix.shape[1] // 3 + 1)
            columns = signs[: matrix.shape[1]].view(1, -1, *[1] * (matrix.dim() - 2))
            matrix.copy_(GAIN * columns * (draw[:, :1] - 0.5).sign())
    return network
