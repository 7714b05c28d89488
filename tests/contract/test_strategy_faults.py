"""A strategy that raises: its run fails, and the run's log shows where, with the traceback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedfactory.coordinator.running.run_log import RUN_LOG
from tests.contract.runner_rig import Coordinator


def _break_down() -> Any:
    raise ValueError("my own fault")


class BreakingTrainPlan(FedAvg):
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        del server_round, arrays, config, grid
        raise _break_down()


class BreakingEvaluatePlan(FedAvg):
    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        del server_round, arrays, config, grid
        raise _break_down()


class BreakingModel(FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        del server_round, replies
        raise _break_down()


class BreakingMetrics(FedAvg):
    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        del server_round, replies
        raise _break_down()


class BreakingLazily(FedAvg):
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        yield from super().configure_train(server_round, arrays, config, grid)
        _break_down()


@pytest.mark.parametrize(
    "cls",
    [BreakingTrainPlan, BreakingEvaluatePlan, BreakingModel, BreakingMetrics, BreakingLazily],
)
def test_what_a_strategy_raises_is_in_the_runs_log_with_its_traceback(
    tmp_path: Path, cls: Callable[..., FedAvg]
) -> None:
    coordinator = Coordinator(
        tmp_path, strategy="custom", strategy_options={"_target_": f"{__name__}.{cls.__name__}"}
    )
    coordinator.settings = replace(coordinator.settings, any_strategy_class=True)
    coordinator.run()
    found = json.loads((coordinator.folder / "summary.json").read_text())
    assert "ValueError: my own fault" in found["reason"]
    told = (coordinator.folder / RUN_LOG).read_text()
    assert "Traceback (most recent call last)" in told
    assert f'File "{__file__}"' in told
    assert "in _break_down" in told


def test_what_a_strategy_raises_of_one_update_is_in_the_runs_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.fedavg.FedAvg.weight", lambda *_: _break_down())
    coordinator = Coordinator(tmp_path, strategy="fedavg", rounds=1)
    coordinator.run()
    told = (coordinator.folder / RUN_LOG).read_text()
    assert "the strategy cannot weigh it (ValueError)" in told
    assert "in _break_down" in told
