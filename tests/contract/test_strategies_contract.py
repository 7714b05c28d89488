"""Our streaming strategies keep to the contract that outside plug-ins are held to."""

from __future__ import annotations

import pytest

from fedfactory.contracts.strategy import StreamingStrategy
from fedfactory.testing.strategies import StaleStrategyContract, StreamingStrategyContract
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
