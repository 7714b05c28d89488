"""No site waits for another: orders, staleness, failures and ends of an async run."""

from __future__ import annotations

from typing import Any

import pytest

from fedfactory.rounds.events import (
    Aggregate,
    CentralMeasured,
    DeadlinePassed,
    Event,
    Finish,
    MeasureCentrally,
    MetricsAggregated,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLeft,
    SiteLost,
    StopRequested,
    Taken,
    UpdateLost,
)
from tests.run_events import Run, accepted, made, refused, sent
from tests.run_plans import SITES, blob, run_plan


def running(**changes: Any) -> Run:
    settings = {"mode": "async", "quorum": 1, "buffer": 2, "rounds": 3, "retries": 1, **changes}
    run = Run(run_plan(**{"evaluate": False, **settings}))
    run.feed(sent(*SITES))
    return run


def order(site: str, number: int, model: int, *, again: bool = False) -> SendOrders:
    return SendOrders(round=number, kind="train", sites=(site,), model=blob(model), again=again)


def timer(at: float) -> Event:
    return DeadlinePassed(at=at, round=1, kind="train")


def test_everyone_begins_at_once_and_the_first_due_order_sets_the_timer() -> None:
    run = Run(run_plan(mode="async", quorum=1, buffer=2))
    assert run.last == (
        SendOrders(round=1, kind="train", sites=SITES, model=blob(0), again=False),
        SetDeadline(round=1, kind="train", after_s=30.0),
    )


def test_a_site_that_is_done_goes_on_at_once() -> None:
    run = running()
    assert run.feed(accepted("lumi")) == (order("lumi", 2, 0),)
    assert run.state.async_.given == {"cesga": 1, "cyfronet": 1, "lumi": 2}


def test_a_full_buffer_makes_a_model_and_updates_know_their_age() -> None:
    run = running()
    run.feed(accepted("lumi"), sent("lumi", round=2))
    assert run.feed(accepted("lumi", round=2)) == (
        Aggregate(
            round=1,
            updates=(
                Taken(site="lumi", order_round=1, staleness=0),
                Taken(site="lumi", order_round=2, staleness=0),
            ),
        ),
    )
    run.feed(made(1))
    assert run.only(SendOrders) == order("lumi", 3, 1)
    run.feed(sent("lumi", round=3), accepted("lumi", round=3))
    run.feed(accepted("cesga"))
    assert run.only(Aggregate).updates == (
        Taken(site="cesga", order_round=1, staleness=1),
        Taken(site="lumi", order_round=3, staleness=0),
    )


def test_it_ends_after_its_models_and_takes_no_more() -> None:
    run = running(rounds=1)
    run.feed(accepted("lumi"), accepted("cesga"), made(1))
    assert run.only(Finish) == Finish(
        status="completed", reason="every round is finished", model=blob(1)
    )
    assert run.feed(accepted("cyfronet")) == ()


def test_a_required_site_that_was_never_in_a_model_is_no_success() -> None:
    run = running(rounds=1, required=("cyfronet",))
    run.feed(accepted("lumi"), accepted("cesga"), made(1))
    assert run.only(Finish).status == "failed"
    assert "the required site 'cyfronet' never took part" in run.only(Finish).reason


def test_the_sites_measure_the_last_model_only() -> None:
    run = running(rounds=2, evaluate=True)
    run.feed(accepted("lumi"), accepted("cesga"), made(1))
    assert run.state.phase == "serving"
    run.feed(sent("cesga", "lumi", round=2))
    run.feed(accepted("lumi", round=2), accepted("cesga", round=2), made(2))
    assert run.only(SendOrders).kind == "evaluate"
    assert run.state.async_.under_way == ()
    run.feed(sent(*SITES, kind="evaluate", round=2), accepted("cyfronet"))  # late, of round 1
    assert run.state.late[-1].site == "cyfronet"
    run.feed(*(accepted(site, "evaluate", round=2) for site in SITES))
    run.feed(MetricsAggregated(at=9.0, round=2, metrics={"loss": 0.3}))
    assert run.only(Finish).status == "completed"


def test_the_central_measurement_is_made_of_every_model() -> None:
    run = running(central=blob(77))
    run.feed(accepted("lumi"), accepted("cesga"), made(1))
    assert run.last == (MeasureCentrally(round=1, model=blob(1)),)
    run.feed(CentralMeasured(at=3.0, round=1, metrics={"loss": 0.5}))
    assert run.only(SendOrders) == order("cesga", 2, 1)  # lumi had got its next before
    assert run.state.finished[-1].judgement.value == 0.5


def test_a_failure_that_passes_is_tried_again_and_not_for_ever() -> None:
    run = running()
    assert run.feed(refused("lumi", "transfer_failed"))[0] == order("lumi", 1, 0, again=True)
    run.feed(refused("lumi", "transfer_failed"))
    assert run.state.async_.out == {"lumi": "transfer_failed"}
    assert not [c for c in run.last if isinstance(c, SendOrders)]
    run.feed(SiteConnected(at=5.0, site="lumi"))
    assert run.only(SendOrders) == order("lumi", 2, 0)


def test_when_everyone_says_no_the_run_fails_at_once() -> None:
    run = running()
    run.feed(*(refused(site, "policy_task") for site in SITES))
    assert run.only(Finish).status == "failed"
    assert "lumi: policy_task" in run.only(Finish).reason


def test_sites_that_left_cannot_fill_a_buffer() -> None:
    run = running(rounds=1)
    run.feed(SiteLeft(at=1.0, site="lumi", code="revoked"))
    run.feed(refused("cesga", "budget_exhausted"))
    assert run.only(Finish).status == "failed"
    assert "a buffer of 2" in run.only(Finish).reason


def test_an_overdue_order_is_sent_again_and_then_left_alone() -> None:
    run = running(rounds=9)
    run.feed(accepted("cesga", at=20.0), accepted("cyfronet", at=20.0), made(1, at=20.0))
    run.feed(sent("cesga", "cyfronet", round=2))
    run.feed(timer(30.0))
    assert run.only(SendOrders) == order("lumi", 1, 0, again=True)
    assert run.only(SetDeadline).after_s == 20.0  # the others' orders are of 20
    run.feed(accepted("cesga", round=2, at=45.0), accepted("cyfronet", round=2, at=45.0))
    run.feed(made(2, at=45.0), timer(60.0))
    assert run.state.async_.out == {"lumi": "no_answer"}
    assert "lumi" not in {order.site for order in run.state.async_.under_way}


def test_a_site_that_is_away_when_its_order_is_due_is_awaited_no_more() -> None:
    run = running(rounds=9)
    run.feed(SiteLost(at=2.0, site="lumi"))
    run.feed(timer(30.0))
    assert run.state.async_.out["lumi"] == "offline"
    run.feed(SiteConnected(at=40.0, site="lumi"))
    assert run.only(SendOrders) == order("lumi", 2, 0)


def test_a_site_that_is_back_in_time_gets_its_order_once_more() -> None:
    run = running()
    run.feed(SiteLost(at=2.0, site="lumi"), SiteConnected(at=9.0, site="lumi"))
    assert run.only(SendOrders) == order("lumi", 1, 0, again=True)


def test_with_nobody_here_it_waits_a_while_and_fails() -> None:
    run = running(lateness_s=5.0)
    run.feed(*(SiteLost(at=2.0, site=site) for site in SITES), timer(30.0))
    assert run.only(SetDeadline).after_s == 35.0
    run.feed(timer(65.0))
    assert run.only(Finish).status == "failed"
    assert "lumi: offline" in run.only(Finish).reason


def test_a_lost_update_is_asked_for_again_from_the_model_it_started_from() -> None:
    run = running()
    run.feed(accepted("lumi"), accepted("cesga"))
    run.feed(UpdateLost(at=3.0, round=1, site="lumi"))
    assert run.state.phase == "serving"
    assert order("lumi", 1, 0, again=True) in run.last
    run.feed(accepted("lumi"))
    assert len(run.only(Aggregate).updates) == 2


def test_a_stop_after_the_round_waits_for_the_model() -> None:
    run = running()
    run.feed(StopRequested(at=2.0, reason="asked to", after_round=True))
    run.feed(accepted("lumi"), accepted("cesga"), made(1))
    assert run.only(Finish) == Finish(status="stopped", reason="asked to", model=blob(1))


@pytest.mark.parametrize("again", [accepted("lumi"), refused("lumi")])
def test_a_second_answer_is_noted_and_changes_nothing(again: Event) -> None:
    run = running()
    run.feed(accepted("lumi"))
    waiting = run.state.async_.waiting
    assert run.feed(again) == ()
    assert run.state.async_.waiting == waiting
    assert run.state.late[-1].why == "duplicate"
