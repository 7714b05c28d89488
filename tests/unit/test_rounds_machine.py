"""The life of a run, step by step."""

from __future__ import annotations

import pytest

from fedfactory.rounds.diagram import mermaid
from fedfactory.rounds.events import (
    Aggregate,
    AggregateMetrics,
    AggregationFailed,
    DeadlinePassed,
    Event,
    Finish,
    MetricsAggregated,
    RecordRound,
    RunFailed,
    RunStarted,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLost,
    StopRequested,
    UpdateLost,
)
from fedfactory.rounds.machine import PHASES, TABLE, MachineError, step
from tests.run_events import PLAN, Run, accepted, made, refused, sent, taken
from tests.run_plans import SITES, blob, run_plan


def test_start_asks_everyone_and_bounds_the_wait() -> None:
    assert Run().last == (
        SendOrders(round=1, kind="train", sites=SITES, model=blob(0), again=False),
        SetDeadline(round=1, kind="train", after_s=30.0),
    )


def test_a_whole_run() -> None:
    run = Run()
    assert run.feed(sent(*SITES)) == ()
    assert run.feed(accepted("lumi"), accepted("cesga")) == ()
    assert run.feed(accepted("cyfronet")) == (Aggregate(round=1, updates=taken(*SITES)),)
    assert run.feed(made(1, at=2.0)) == (
        SendOrders(round=1, kind="evaluate", sites=SITES, model=blob(1), again=False),
        SetDeadline(round=1, kind="evaluate", after_s=30.0),
    )
    run.feed(sent(*SITES, kind="evaluate"))
    ready = run.feed(*(accepted(site, "evaluate") for site in reversed(SITES)))
    assert ready == (AggregateMetrics(round=1, sites=SITES),)
    assert run.feed(MetricsAggregated(at=3.0, round=1, metrics={"loss": 1.0})) == (
        RecordRound(round=1, drop=()),
        SendOrders(round=2, kind="train", sites=SITES, model=blob(1), again=False),
        SetDeadline(round=2, kind="train", after_s=30.0),
    )
    run.feed(sent(*SITES, round=2), *(accepted(site, round=2) for site in SITES))
    run.feed(made(2, at=4.0))
    run.feed(sent(*SITES, kind="evaluate", round=2))
    run.feed(*(accepted(site, "evaluate", round=2) for site in SITES))
    end = run.feed(MetricsAggregated(at=5.0, round=2, metrics={}))
    assert end[0] == RecordRound(round=2, drop=())
    assert isinstance(end[1], Finish)
    assert (end[1].status, end[1].model) == ("completed", blob(2))
    assert run.state.phase == "done"
    assert run.state.never_took_part == ()


def test_without_evaluation_the_next_round_follows_at_once() -> None:
    run = Run(run_plan(evaluate=False))
    run.feed(sent(*SITES), *(accepted(site) for site in SITES))
    commands = run.feed(made(1, at=2.0))
    assert [type(c) for c in commands] == [RecordRound, SendOrders, SetDeadline]


def test_a_second_answer_is_noted_and_changes_nothing() -> None:
    run = Run()
    run.feed(accepted("lumi"))
    before = run.state
    assert run.feed(accepted("lumi", examples=999), refused("lumi")) == ()
    assert run.state.sync.train == before.sync.train
    assert [(late.site, late.why) for late in run.state.late] == [("lumi", "duplicate")] * 2


def test_an_answer_after_its_phase_is_late() -> None:
    run = Run()
    run.feed(sent(*SITES), accepted("lumi"), accepted("cesga"))
    assert run.feed(DeadlinePassed(at=9.0, round=1, kind="train")) == (
        Aggregate(round=1, updates=taken("cesga", "lumi")),
    )
    assert run.feed(accepted("cyfronet")) == ()
    assert [late.why for late in run.state.late] == ["late"]
    assert run.state.sync.train["cyfronet"].status == "no_answer"
    assert run.state.never_took_part == ("cyfronet",)


def test_an_answer_for_a_past_round_is_late() -> None:
    run = Run(run_plan(evaluate=False))
    run.feed(sent(*SITES), *(accepted(site) for site in SITES))
    run.feed(made(1, at=2.0))
    before = run.state
    assert run.feed(accepted("lumi", round=1)) == ()
    assert run.state.sync.train == before.sync.train
    assert run.state.awaits(2, "train", "lumi")


def test_the_deadline_says_who_was_silent_and_who_was_away() -> None:
    run = Run()
    run.feed(sent(*SITES), SiteLost(at=1.0, site="lumi"), accepted("cesga"))
    (finish,) = run.feed(DeadlinePassed(at=9.0, round=1, kind="train"))
    assert isinstance(finish, Finish)
    assert finish.status == "failed"
    assert "cyfronet: no_answer" in finish.reason
    assert "lumi: offline" in finish.reason
    assert finish.model == blob(0)


def test_an_unreachable_quorum_fails_at_once() -> None:
    run = Run()
    assert run.feed(sent(*SITES), refused("lumi", "worker_lost")) == ()
    (finish,) = run.feed(refused("cesga", "too_few_examples"))
    assert isinstance(finish, Finish)
    assert finish.status == "failed"
    assert "lumi: worker_lost" in finish.reason
    assert "cesga: too_few_examples" in finish.reason


def test_a_refusal_does_not_stop_a_round_with_quorum() -> None:
    run = Run()
    run.feed(sent(*SITES), refused("lumi"), accepted("cesga"))
    assert run.feed(accepted("cyfronet")) == (
        Aggregate(round=1, updates=taken("cesga", "cyfronet")),
    )


def test_a_site_that_comes_back_is_asked_again() -> None:
    run = Run()
    assert run.feed(SiteConnected(at=0.5, site="lumi")) == ()  # the first orders are still to go
    run.feed(sent(*SITES), SiteLost(at=1.0, site="lumi"))
    again = SendOrders(round=1, kind="train", sites=("lumi",), model=blob(0), again=True)
    assert run.feed(SiteConnected(at=2.0, site="lumi")) == (again,)
    run.feed(sent("lumi"), accepted("lumi"))
    assert run.feed(SiteConnected(at=3.0, site="lumi")) == ()  # it has answered


def test_a_site_that_connects_late_for_the_first_time_is_asked_again() -> None:
    run = Run()
    run.feed(sent(*SITES))
    assert len(run.feed(SiteConnected(at=2.0, site="lumi"))) == 1


def test_sites_the_strategy_left_out_are_not_awaited() -> None:
    run = Run()
    run.feed(sent("cesga", "lumi"), accepted("lumi"))
    assert run.feed(accepted("cesga")) == (Aggregate(round=1, updates=taken("cesga", "lumi")),)
    assert run.state.sync.train["cyfronet"].status == "not_selected"
    (finish,) = Run().feed(sent("lumi"))
    assert isinstance(finish, Finish)
    assert "cesga: not_selected" in finish.reason


def test_an_evaluation_without_answers_gives_no_metrics() -> None:
    run = Run()
    run.feed(sent(*SITES), *(accepted(site) for site in SITES))
    run.feed(made(1, at=2.0), sent(*SITES, kind="evaluate"))
    run.feed(refused("lumi", kind="evaluate"))
    commands = run.feed(DeadlinePassed(at=9.0, round=1, kind="evaluate"))
    assert [type(c) for c in commands] == [RecordRound, SendOrders, SetDeadline]


def test_a_failed_aggregation_ends_the_run_with_the_last_finished_model() -> None:
    run = Run()
    run.feed(sent(*SITES), *(accepted(site) for site in SITES))
    (finish,) = run.feed(AggregationFailed(at=2.0, round=1, reason="too few replies"))
    assert finish == Finish(status="failed", reason="round 1: too few replies", model=blob(0))


def test_stopping_during_evaluation_keeps_the_last_finished_model() -> None:
    run = Run()
    run.feed(sent(*SITES), *(accepted(site) for site in SITES))
    run.feed(made(1, at=2.0))
    (finish,) = run.feed(StopRequested(at=3.0, reason="Ctrl-C", after_round=False))
    assert finish == Finish(status="stopped", reason="Ctrl-C", model=blob(0))


@pytest.mark.parametrize(
    "event",
    [
        RunStarted(at=1.0, plan=PLAN, connected=SITES),
        made(1, at=1.0),
        MetricsAggregated(at=1.0, round=1, metrics={}),
        accepted("lumi", "evaluate"),
        accepted("lumi", round=2),
        accepted("marenostrum"),
        sent("marenostrum"),
        sent(*SITES, round=2),
        DeadlinePassed(at=1.0, round=2, kind="train"),
        AggregationFailed(at=1.0, round=7, reason="?"),
    ],
)
def test_what_makes_no_sense_is_told_with_the_story(event: Event) -> None:
    run = Run()
    run.feed(sent(*SITES), SiteLost(at=1.0, site="lumi"))
    with pytest.raises(MachineError) as caught:
        run.feed(event)
    told = str(caught.value)
    assert "'training'" in told
    assert type(event).__name__ in told
    assert "SiteLost lumi" in told


def test_after_the_end_everything_is_ignored() -> None:
    run = Run()
    run.feed(RunFailed(at=1.0, reason="disk full"))
    end = run.state
    for event in (*run.log, sent("lumi"), accepted("lumi"), refused("lumi")):
        assert step(run.state, event) == (end, ())


def test_a_late_timer_is_ignored() -> None:
    run = Run()
    run.feed(sent(*SITES), *(accepted(site) for site in SITES))
    assert run.feed(DeadlinePassed(at=9.0, round=1, kind="train")) == ()
    assert run.state.phase == "aggregating"


def test_the_diagram_comes_from_the_table() -> None:
    drawn = mermaid()
    assert "aggregating --> done" in drawn
    assert "AggregationFailed" in drawn
    assert all(phase in drawn for phase in PHASES)
    assert {phase for phase, _ in TABLE} == set(PHASES)


def test_every_phase_but_the_first_can_be_stopped_and_broken() -> None:
    for phase in PHASES[1:-1]:
        assert TABLE[phase, StopRequested].to == (phase, "done")
        assert TABLE[phase, RunFailed].to == ("done",)


def outcomes(run: Run, *events: Event) -> list[str]:
    found = []
    for event in events:
        run.feed(event)
        found.append(run.state.outcome)
    return found


def test_the_machine_says_what_an_answer_came_to() -> None:
    run = Run(run_plan(retries=1))
    again = refused("cesga", "transfer_failed")
    assert outcomes(
        run,
        sent(*SITES),
        again,
        accepted("cesga"),
        accepted("cesga", at=5.0),
        accepted("cesga", examples=11),
        again,
        refused("lumi", "policy_task"),
        UpdateLost(at=1.0, round=1, site="lumi"),
        accepted("cyfronet"),
        accepted("cyfronet", round=1, examples=11),
    ) == [
        "applied",
        "refused",
        "counted",
        "repeated",
        "duplicate",
        "duplicate",
        "gave_up",
        "ignored",
        "counted",
        "duplicate",
    ]
    assert [(late.site, late.why) for late in run.state.late] == [
        ("cesga", "duplicate"),
        ("cesga", "duplicate"),
        ("cesga", "duplicate"),
        ("cyfronet", "duplicate"),
    ]
    run = Run()
    run.feed(sent(*SITES), accepted("cesga"), accepted("cyfronet"))
    run.feed(DeadlinePassed(at=1.0, round=1, kind="train"))
    assert outcomes(run, accepted("lumi")) == ["late"]


def test_an_async_answer_is_counted_repeated_or_given_up() -> None:
    run = Run(run_plan(mode="async", buffer=3, quorum=1, evaluate=False))
    assert outcomes(
        run,
        sent(*SITES),
        accepted("cesga"),
        accepted("cesga", at=7.0),
        accepted("cesga", examples=11),
        refused("lumi", "policy_task"),
    ) == ["applied", "counted", "repeated", "duplicate", "gave_up"]
