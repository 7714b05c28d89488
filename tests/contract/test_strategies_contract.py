"""Our streaming strategies keep to the contract that outside plug-ins are held to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedfactory.contracts.errors import IntegrityError, UsageError
from fedfactory.contracts.strategy import StreamingStrategy
from fedfactory.contracts.updates import Update
from fedfactory.coordinator.aggregating.aggregation import StreamingAggregation
from fedfactory.testing.strategies import (
    TRAINING,
    StaleStrategyContract,
    StreamingStrategyContract,
)
from strategies import make_strategy


class TestFedAvg(StreamingStrategyContract):
    @pytest.fixture(params=["examples", "uniform"])
    def strategy(self, request: pytest.FixtureRequest) -> StreamingStrategy:
        return make_strategy("fedavg", {"weighting": request.param})


class TestFedProx(StreamingStrategyContract):
    @pytest.fixture
    def strategy(self) -> StreamingStrategy:
        return make_strategy("fedprox", {"mu": 0.1, "weighting": "examples"})


class TestFedBuff(StaleStrategyContract):
    @pytest.fixture
    def strategy(self) -> StreamingStrategy:
        return make_strategy("fedbuff", {"server_lr": 0.7})


class Slowing:
    """A strategy with memory: it steps less far each round."""

    def __init__(self, rounds: Any = ()) -> None:
        self.rounds = rounds

    def train_parameters(self) -> Mapping[str, float]:
        return {}

    def weight(self, update: Update) -> float:
        self.rounds = type(self.rounds)({*self.rounds, update.work.round})
        return float(update.examples or 0)

    def apply(
        self, base: NDArray[np.float64], mean_delta: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return base + mean_delta / (1 + len(self.rounds))


class Telling(Slowing):
    """Its rounds are a set, which is no attribute that can be saved."""

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": sorted(self.rounds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = set(state["rounds"])


class TestWithMemory(StreamingStrategyContract):
    @pytest.fixture(params=[Slowing(), Telling(set())])
    def strategy(self, request: pytest.FixtureRequest) -> StreamingStrategy:
        kind = type(request.param)
        made: StreamingStrategy = kind(type(request.param.rounds)())
        return made


def test_a_streaming_strategy_whose_memory_cannot_be_saved_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Slowing: strategy\.rounds holds a builtins\.set"):
        StreamingAggregation(Slowing(set()), training=TRAINING)


def test_the_memory_of_another_strategy_is_refused(tmp_path: Path) -> None:
    strategy = Slowing()
    aggregation = StreamingAggregation(strategy, training=TRAINING)
    assert aggregation.save(tmp_path) is None
    strategy.rounds = (1,)
    ref = aggregation.save(tmp_path)
    assert ref is not None
    other = StreamingAggregation(make_strategy("fedbuff", {"server_lr": 0.7}), training=TRAINING)
    with pytest.raises(IntegrityError, match="not the memory of such a FedBuff"):
        other.restore(tmp_path / ref.digest.removeprefix("sha256:"))
