"""Which model is best, when a run stops early, how it is stopped, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest

from fedfactory.rounds.events import (
    AggregateMetrics,
    CentralMeasured,
    Finish,
    MeasureCentrally,
    RecordRound,
    StopRequested,
)
from fedfactory.rounds.history import History, append
from fedfactory.rounds.summary import summary
from tests.run_events import Run, accepted, made, sent
from tests.run_plans import SITES, blob, run_plan


def measured(number: int, loss: float) -> CentralMeasured:
    return CentralMeasured(at=4.0, round=number, metrics={"loss": loss})


def test_both_evaluations_close_the_round_in_any_order() -> None:
    for central_first in (True, False):
        run = Run(run_plan(central=blob(77)))
        run.train(1)
        run.feed(made(1))
        assert run.only(MeasureCentrally).model == blob(1)
        if central_first:
            assert run.feed(measured(1, 0.5)) == ()
        run.feed(sent(*SITES, kind="evaluate"), *(accepted(s, "evaluate") for s in SITES))
        assert run.only(AggregateMetrics).sites == SITES
        from fedfactory.rounds.events import MetricsAggregated

        run.feed(MetricsAggregated(at=5.0, round=1, metrics={"loss": 0.9}))
        if not central_first:
            assert run.last == ()
            run.feed(measured(1, 0.5))
        assert run.only(RecordRound).round == 1
        assert run.state.finished[-1].judgement.value == 0.5  # the central one tells


def test_the_central_evaluation_alone_closes_the_round() -> None:
    run = Run(run_plan(central=blob(77), evaluate=False))
    run.train(1)
    assert run.feed(made(1)) == (MeasureCentrally(round=1, model=blob(1)),)
    run.feed(measured(1, 0.5))
    assert run.only(RecordRound).round == 1
    assert run.feed(measured(1, 0.5)) == ()  # measured twice, after a restart


@pytest.mark.parametrize(("keep", "model"), [("last", 3), ("best", 2)])
def test_the_best_model_is_kept_if_that_is_asked_for(keep: str, model: int) -> None:
    run = Run(run_plan(rounds=3, keep=keep))
    for number, loss in ((1, 0.9), (2, 0.4), (3, 0.6)):
        run.finish_round(number, loss)
    assert (run.only(Finish).status, run.only(Finish).model) == ("completed", blob(model))
    assert run.state.finished[-1].judgement.best_round == 2


@pytest.mark.parametrize(("keep", "loss"), [("last", 0.6), ("best", 0.4)])
def test_the_final_metrics_are_those_of_the_model_that_is_kept(keep: str, loss: float) -> None:
    run = Run(run_plan(rounds=3, keep=keep))
    for number, value in ((1, 0.9), (2, 0.4), (3, 0.6)):
        run.finish_round(number, value)
    history = History.new()
    for event in run.log:
        history = append(history, event)
    told = summary(history, run.only(Finish), traffic={}, model_file=None)
    assert told["final"]["loss"] == loss


def test_a_run_stops_early_and_says_by_what() -> None:
    run = Run(run_plan(rounds=9, patience=2, min_delta=0.01))
    for number, loss in ((1, 0.5), (2, 0.495), (3, 0.492)):
        run.finish_round(number, loss)
    end = run.only(Finish)
    assert end.status == "completed"
    assert end.reason == (
        "stopped early after round 3: loss did not improve by more than 0.01 in the last 2 rounds"
        " measured (best 0.492, in round 3)"
    )


def test_small_steps_that_add_up_are_movement() -> None:
    run = Run(run_plan(rounds=9, patience=2, min_delta=0.01))
    for number in range(1, 7):
        run.finish_round(number, 0.5 - 0.006 * number)
    assert run.state.phase == "training"


def test_more_is_better_where_the_metric_says_so() -> None:
    run = Run(run_plan(rounds=9, patience=1, metric="loss", higher_is_better=True))
    run.finish_round(1, 0.5)
    run.finish_round(2, 0.6)
    assert run.state.finished[-1].judgement.best_round == 2
    run.finish_round(3, 0.6)
    assert run.only(Finish).reason.startswith("stopped early after round 3")


def test_a_round_that_was_not_measured_is_no_standstill() -> None:
    run = Run(run_plan(rounds=9, patience=1))
    run.finish_round(1, 0.5)
    run.finish_round(2, float("nan"))
    assert run.state.phase == "training"


# ---- stopping -------------------------------------------------------------------------------


def stop(after_round: bool) -> StopRequested:
    return StopRequested(at=3.0, reason="asked to", after_round=after_round)


def test_a_stop_after_the_round_lets_it_finish() -> None:
    run = Run(run_plan(evaluate=False))
    assert run.feed(stop(after_round=True)) == ()
    run.finish_round(1)
    assert run.only(Finish) == Finish(status="stopped", reason="asked to", model=blob(1))


def test_a_second_stop_does_not_wait() -> None:
    run = Run(run_plan(evaluate=False))
    run.feed(stop(after_round=True), stop(after_round=True))
    assert run.only(Finish) == Finish(status="stopped", reason="asked to", model=blob(0))


def test_a_stop_after_the_last_round_is_a_completed_run() -> None:
    run = Run(run_plan(evaluate=False, rounds=1))
    run.feed(stop(after_round=True))
    run.finish_round(1)
    assert run.only(Finish).status == "completed"


# ---- what is kept ---------------------------------------------------------------------------


def dropped(run: Run) -> list[int]:
    return [int(ref.digest[-4:], 16) for ref in run.only(RecordRound).drop]


def test_old_models_are_dropped() -> None:
    run = Run(run_plan(rounds=6, evaluate=False, checkpoints=2))
    found = []
    for number in range(1, 6):
        run.finish_round(number)
        found.append(dropped(run))
    assert found == [[], [0], [1], [2], [3]]


def test_the_best_model_stays_until_a_better_one_is_there() -> None:
    run = Run(run_plan(rounds=9, checkpoints=1))
    found = []
    for number, loss in ((1, 0.9), (2, 0.1), (3, 0.5), (4, 0.5), (5, 0.05)):
        run.finish_round(number, loss)
        found.append(dropped(run))
    assert found == [[0], [1], [], [3], [2, 4]]


def test_a_model_that_two_rounds_share_is_not_dropped_with_the_first() -> None:
    run = Run(run_plan(rounds=6, evaluate=False, checkpoints=1))
    run.finish_round(1)
    for number in (2, 3):
        run.train(number)
        run.feed(made(number).__class__(at=2.0, round=number, model=blob(1), state=None))
        assert dropped(run) == []


@pytest.mark.parametrize("judged", [{"keep": "best"}, {"patience": 1}])
def test_a_metric_that_nobody_reported_is_told(judged: dict[str, Any]) -> None:
    run = Run(run_plan(metric="accuracy", **judged))
    run.finish_round(1, 0.5)
    run.finish_round(2, 0.5)
    assert run.only(Finish).reason == (
        "every round is finished; nothing ever measured its accuracy, so the last model is kept"
    )
    assert run.only(Finish).model == blob(2)
