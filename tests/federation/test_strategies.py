"""Flower's own strategies, by name, over real processes, on a model with integer buffers."""

from __future__ import annotations

import pytest

from tests.federation.conftest import Launcher

pytestmark = pytest.mark.federation
MODEL = ("task.model=cnn_bn", "rounds=1", "local_epochs=1", "max_steps=2")


@pytest.mark.parametrize(
    "options",
    [
        ("FedMedian",),
        ("FedAdam", "+strategy.eta=0.01"),
        ("QFedAvg", "+strategy.client_learning_rate=0.1"),
    ],
)
def test_a_flower_strategy_by_target(launch: Launcher, options: tuple[str, ...]) -> None:
    name, *fields = options
    federation = launch(
        *MODEL, "strategy=custom", f"strategy._target_=flwr.serverapp.strategy.{name}", *fields
    )
    assert federation.wait() == 0, federation.output()
    assert federation.summary()["status"] == "completed"


def test_a_strategy_that_needs_more_replies_fails_with_a_reason(launch: Launcher) -> None:
    federation = launch(
        *MODEL,
        "strategy=custom",
        "strategy._target_=flwr.serverapp.strategy.Bulyan",
        "+strategy.num_malicious_nodes=1",
    )
    assert federation.wait() == 3, federation.output()
    assert federation.summary()["reason"]


def test_fedprox_streams(launch: Launcher) -> None:
    federation = launch(*MODEL, "strategy=fedprox")
    assert federation.wait() == 0, federation.output()
