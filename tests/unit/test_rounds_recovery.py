"""What a run asks for when it is taken up again, phase by phase."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedfactory.rounds.events import (
    Aggregate,
    AggregateMetrics,
    CheckpointLost,
    Command,
    Finish,
    MeasureCentrally,
    RecordRound,
    RunFailed,
    RunReopened,
    RunResumed,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLeft,
    StopRequested,
    UpdateLost,
)
from fedfactory.rounds.machine import MachineError
from tests.run_events import Run, accepted, made, sent, taken
from tests.run_plans import SITES, blob, run_plan


def resumed(run: Run, *connected: str) -> tuple[Command, ...]:
    return run.feed(RunResumed(at=9.0, connected=connected or SITES))


def first(number: int, kind: str = "train", model: int = 0) -> SendOrders:
    return SendOrders(round=number, kind=kind, sites=SITES, model=blob(model), again=False)


BOUND = SetDeadline(round=1, kind="train", after_s=30.0)


def test_orders_that_may_never_have_gone_out_are_planned_and_sent() -> None:
    assert resumed(Run()) == (first(1), BOUND)


def test_who_has_not_answered_is_asked_again_and_who_has_is_not() -> None:
    run = Run()
    run.feed(sent(*SITES), accepted("cesga"))
    again = SendOrders(round=1, kind="train", sites=("cyfronet", "lumi"), model=blob(0), again=True)
    assert resumed(run) == (again, BOUND)


def test_who_is_away_is_asked_when_it_is_back() -> None:
    run = Run()
    run.feed(sent(*SITES))
    commands = resumed(run, "cesga")
    assert commands[0] == SendOrders(
        round=1, kind="train", sites=("cesga",), model=blob(0), again=True
    )
    run.feed(SiteConnected(at=10.0, site="lumi"))
    assert run.only(SendOrders).sites == ("lumi",)


def test_an_aggregate_is_made_again_from_the_same_updates() -> None:
    run = Run()
    run.feed(sent("cesga", "lumi"), accepted("lumi"), accepted("cesga"))
    assert resumed(run) == (Aggregate(round=1, updates=taken("cesga", "lumi")),)


def test_measurements_are_made_again() -> None:
    run = Run(run_plan(central=blob(77)))
    run.train(1)
    run.feed(made(1))
    central = MeasureCentrally(round=1, model=blob(1))
    bound = SetDeadline(round=1, kind="evaluate", after_s=30.0)
    assert resumed(run) == (first(1, "evaluate", 1), bound, central)
    run.feed(sent(*SITES, kind="evaluate"), *(accepted(s, "evaluate") for s in SITES))
    assert resumed(run) == (AggregateMetrics(round=1, sites=SITES), central)


def test_a_round_is_recorded_again_but_never_drops_what_came_back() -> None:
    run = Run(run_plan(evaluate=False, rounds=5, checkpoints=1))
    run.finish_round(1)
    assert run.only(RecordRound).drop == (blob(0),)
    assert resumed(run)[0] == RecordRound(round=1, drop=(blob(0),))
    run.train(2)
    run.feed(replace(made(2), model=blob(0)))  # the very model that round 1 dropped
    assert resumed(run)[0] == RecordRound(round=2, drop=(blob(1),))


def test_an_ended_run_ends_again() -> None:
    run = Run(run_plan(evaluate=False, rounds=1))
    run.finish_round(1)
    end = run.only(Finish)
    assert resumed(run) == (RecordRound(round=1, drop=()), end)


def test_async_orders_are_sent_again_and_free_sites_get_their_next() -> None:
    run = Run(run_plan(mode="async", quorum=1, buffer=3, rounds=5, evaluate=False))
    unsent = SendOrders(round=1, kind="train", sites=SITES, model=blob(0), again=False)
    assert resumed(run)[0] == unsent
    run.feed(sent(*SITES), accepted("lumi", at=9.5))
    again = SendOrders(
        round=1, kind="train", sites=("cesga", "cyfronet"), model=blob(0), again=True
    )
    assert resumed(run)[:2] == (
        SendOrders(round=2, kind="train", sites=("lumi",), model=blob(0), again=False),
        again,
    )
    run.feed(accepted("cesga", at=9.6), accepted("cyfronet", at=9.7))
    assert run.only(Aggregate) in resumed(run)


# ---- reopening ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [
        RunFailed(at=5.0, reason="disk full"),
        StopRequested(at=5.0, reason="asked to", after_round=False),
    ],
)
def test_an_ended_run_goes_on_after_its_last_finished_round(event) -> None:
    run = Run(run_plan(evaluate=False, rounds=3))
    run.finish_round(1)
    run.feed(sent(*SITES, round=2), accepted("lumi", round=2), event)
    run.feed(RunReopened(at=6.0, by="ana"))
    assert run.last[0] == first(2, model=1)
    assert run.state.sites("train", "asked") == SITES  # what was in is gone
    run.finish_round(2)
    run.finish_round(3)
    assert run.only(Finish).status == "completed"


def test_a_completed_run_is_not_reopened() -> None:
    run = Run(run_plan(evaluate=False, rounds=1))
    run.finish_round(1)
    with pytest.raises(MachineError, match="completed"):
        run.feed(RunReopened(at=6.0, by="ana"))


# ---- losses ---------------------------------------------------------------------------------


def test_a_lost_update_is_asked_for_again() -> None:
    run = Run()
    run.train(1)
    run.feed(UpdateLost(at=5.0, round=1, site="lumi"))
    assert run.last == (
        SendOrders(round=1, kind="train", sites=("lumi",), model=blob(0), again=True),
        BOUND,
    )
    assert run.feed(accepted("lumi")) == (Aggregate(round=1, updates=taken(*SITES)),)


def test_an_update_that_is_in_a_model_is_not_missed() -> None:
    run = Run()
    run.train(1)
    run.feed(made(1), UpdateLost(at=5.0, round=1, site="lumi"))
    assert run.last == ()
    run = Run(run_plan(evaluate=False))
    run.finish_round(1)
    assert run.feed(UpdateLost(at=5.0, round=1, site="lumi")) == ()


def test_a_lost_update_of_a_site_that_left_is_gone() -> None:
    run = Run()
    run.train(1)
    run.feed(SiteLeft(at=4.0, site="lumi", code="revoked"))
    run.feed(UpdateLost(at=5.0, round=1, site="lumi"))
    assert run.last == (Aggregate(round=1, updates=taken("cesga", "cyfronet")),)


def test_a_lost_checkpoint_falls_back_to_the_round_before() -> None:
    run = Run(run_plan(evaluate=False, rounds=4))
    run.finish_round(1)
    run.finish_round(2)
    run.feed(sent(*SITES, round=3), accepted("lumi", round=3))
    run.feed(CheckpointLost(at=5.0, round=1, reason="its digest is wrong"))
    assert run.last[0] == first(2, model=1)
    assert [found.round for found in run.state.finished] == [0, 1]
    run.feed(sent(*SITES, round=2), *(accepted(s, round=2) for s in SITES), made(2))
    assert run.only(RecordRound).round == 2


def test_falling_back_forgets_a_best_model_that_is_gone() -> None:
    run = Run(run_plan(rounds=4))
    run.finish_round(1, 0.5)
    run.finish_round(2, 0.1)
    run.feed(CheckpointLost(at=5.0, round=1, reason="its digest is wrong"))
    assert run.state.finished[-1].judgement.best_round == 1
    assert [c.kind for c in run.state.planned] == ["evaluate", "train"]
    assert [answer.site for answer in run.state.evaluated] == [*SITES]


def test_only_what_is_kept_can_be_fallen_back_to() -> None:
    run = Run(run_plan(evaluate=False, rounds=4, checkpoints=1))
    run.finish_round(1)
    with pytest.raises(MachineError, match=r"only rounds \[1\]"):
        run.feed(CheckpointLost(at=5.0, round=0, reason="?"))


# ---- async: orders are few --------------------------------------------------------------------


def full_buffer(**changes: Any) -> Run:
    """Every update of every site is needed: no order may be wasted."""
    settings = {"mode": "async", "quorum": 1, "buffer": 3, "rounds": 2, **changes}
    run = Run(run_plan(evaluate=False, **settings))
    run.feed(sent(*SITES))
    return run


def order_again(number: int, *sites: str) -> SendOrders:
    return SendOrders(round=number, kind="train", sites=sites, model=blob(0), again=True)


def test_async_a_lost_checkpoint_asks_again_for_what_was_in_it() -> None:
    run = full_buffer(central=blob(77))
    run.feed(*(accepted(site) for site in SITES), made(1))
    given = run.state.async_.given
    run.feed(CheckpointLost(at=9.0, round=0, reason="its digest is wrong"))
    assert order_again(1, *SITES) in resumed(run)
    assert run.state.async_.given == given
    run.feed(*(accepted(site) for site in SITES))
    assert run.only(Aggregate).updates == taken(*SITES)


def test_async_what_is_in_the_model_fallen_back_to_is_not_asked_again() -> None:
    run = full_buffer(rounds=3)
    run.feed(*(accepted(site) for site in SITES), made(1))
    run.feed(sent(*SITES, round=2))
    run.feed(CheckpointLost(at=9.0, round=1, reason="its digest is wrong"))
    assert {order.number for order in run.state.async_.under_way} == {2}


@pytest.mark.parametrize("answers", [0, 1, 3])
def test_async_a_reopened_run_wastes_no_order(answers: int) -> None:
    run = full_buffer()
    run.feed(*(accepted(site) for site in SITES[:answers]))
    given = run.state.async_.given
    run.feed(RunFailed(at=5.0, reason="disk full"), RunReopened(at=9.0, by="ana"))
    assert order_again(1, *SITES) in resumed(run)
    assert run.state.async_.given == given
    run.feed(*(accepted(site) for site in SITES))
    assert run.only(Aggregate).updates == taken(*SITES)


@pytest.mark.parametrize("went_out", [False, True])
def test_async_an_order_is_used_up_once_it_went_out(*, went_out: bool) -> None:
    run = full_buffer()
    run.feed(*(accepted(site) for site in SITES), made(1))
    given = run.state.async_.given
    assert (run.only(SendOrders).sites, given["lumi"]) == (("lumi",), 2)  # from the new model
    if went_out:
        run.feed(sent("lumi", round=2))
    run.feed(CheckpointLost(at=9.0, round=0, reason="its digest is wrong"))
    assert run.state.async_.given == {**given, "lumi": 2 if went_out else 1}
