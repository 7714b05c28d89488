"""The first model is not made of a network that DP-SGD cannot train, and the reason is a sentence."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from fedfactory.contracts.errors import UsageError
from fedfactory.tasks.digits import SCHEMA, Digits
from fedfactory.tasks.model_jobs import check_trainable
from fedfactory.tasks.network_task import NetworkTask
from fedfactory.tasks.parameters import Parameter

MLP = {"model": "mlp"}


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.never = nn.Linear(64, 10), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.last = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.cells(x.reshape(-1, 8, 8))[0][:, -1])


def task_of(make):
    class Own(NetworkTask):
        name = f"own-{make.__name__}"
        parameters: ClassVar[dict[str, Parameter]] = {}

        def schema(self, parameters):
            return SCHEMA

        def network(self, parameters):
            return make()

    return Own()


def batch_norm():
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 10))


def dropout():
    return nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.3), nn.Linear(32, 10))


def half():
    return nn.Linear(64, 10).to(torch.bfloat16)


@pytest.mark.rule("23")
@pytest.mark.rule("27")
@pytest.mark.parametrize(
    ("make", "words"),
    [(batch_norm, "layer '1' is a BatchNorm1d"), (_Recurrent, "LSTM"), (_Unused, "shape (3, 3)")],
)
def test_what_cannot_be_trained_by_dp_sgd_is_refused_by_name(make, words):
    with pytest.raises(UsageError, match=r"each record|record by record") as caught:
        check_trainable(task_of(make), {}, "hooks")
    assert words in caught.value.public_message


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_what_can_be_trained_is_taken(mode):
    check_trainable(Digits(), MLP, mode)
    check_trainable(task_of(dropout), {}, mode)


def test_a_type_that_cannot_travel_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"tensor 'weight' is bfloat16.*float32"):
        task_of(half).write_initial({}, 1, tmp_path / "model")
