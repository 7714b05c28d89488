"""Why did a site not contribute? One sentence, and the events that it rests on."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.contracts.refusals import REFUSALS
from fedfactory.rounds.events import (
    DeadlinePassed,
    Event,
    RunFailed,
    RunReopened,
    SiteLeft,
    SiteLost,
    StopRequested,
)
from fedfactory.rounds.explanation import Explained, explain
from tests.run_events import Run, accepted, made, refused, sent
from tests.run_plans import SITES, run_plan

DEADLINE = DeadlinePassed(at=40.0, round=1, kind="train")
LATE = accepted("lumi", at=52.5)


def told(run: Run, site: str = "lumi", number: int = 1) -> Explained:
    (found,) = explain(run.log, site, number)
    return found


def after(*events: Event, **changes: object) -> Run:
    """A round of three sites in which the other two give their updates after `events`."""
    run = Run(run_plan(evaluate=False, **changes))
    run.feed(sent(*SITES), *events)
    for site in SITES[:2]:
        run.feed(accepted(site))
    return run


def test_who_contributed() -> None:
    run = after(accepted("lumi"))
    found = told(run)
    assert found.contributed
    assert (
        found.sentence == "lumi, round 1: contributed: its update (10 examples) went into the model"
    )
    assert found.evidence == (1, 2)


@pytest.mark.parametrize(
    ("events", "sentence", "evidence"),
    [
        (
            [SiteLost(at=5.0, site="lumi")],
            "offline since 1970-01-01 00:00:05 UTC, and not back before the round closed",
            (2, 5),
        ),
        (
            [refused("lumi", "policy_task")],
            "refused by policy_task: the site's policy does not allow this task",
            (1, 2),
        ),
        (
            [refused("lumi", "worker_lost")],
            f"crashed with worker_lost: {REFUSALS['worker_lost']}",
            (1, 2),
        ),
        (
            [refused("lumi", "bad_update_values")],
            "rejected because of bad_update_values: the update holds non-finite numbers",
            (1, 2),
        ),
        (
            [SiteLeft(at=5.0, site="lumi", code="revoked")],
            f"cut off since 1970-01-01 00:00:05 UTC: {REFUSALS['revoked']} (revoked)",
            (2,),
        ),
    ],
)
def test_why_not(events: list[Event], sentence: str, evidence: tuple[int, ...]) -> None:
    run = after(*events)
    run.feed(DEADLINE)
    found = told(run)
    assert not found.contributed
    assert found.sentence == f"lumi, round 1: {sentence}"
    assert found.evidence == evidence


@given(at=st.integers(0, 4_102_444_800))
def test_times_are_those_of_the_calendar(at: int) -> None:
    run = after(SiteLost(at=float(at), site="lumi"))
    run.feed(DEADLINE)
    told_at = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    assert f"offline since {told_at}," in told(run).sentence


def test_a_site_that_is_cut_off_in_the_round_under_way_has_the_event_to_show() -> None:
    run = Run(run_plan(evaluate=False))
    run.feed(sent(*SITES), SiteLeft(at=5.0, site="lumi", code="revoked"))
    assert "cut off since 1970-01-01 00:00:05 UTC" in told(run).sentence
    assert told(run).evidence == (2,)


def test_late_by() -> None:
    run = after()
    run.feed(DEADLINE, LATE)
    assert told(run).sentence == "lumi, round 1: late by 12.5 s: the round had closed"
    assert told(run).evidence == (1, 4, 5)


def test_a_refusal_that_comes_late_is_no_late_update() -> None:
    run = after()
    run.feed(DEADLINE, replace(refused("lumi", code="transfer_failed"), at=52.5))
    assert told(run).sentence == (
        "lumi, round 1: no answer before the round closed; 12.5 s later came transfer_failed"
    )


def test_late_even_when_the_next_round_has_begun() -> None:
    run = after()
    run.feed(DEADLINE, made(1), LATE)
    assert "late by 12.5 s" in told(run).sentence
    assert "queued" in told(run, number=2).sentence


def test_silent() -> None:
    run = after()
    run.feed(DEADLINE)
    assert told(run).sentence == (
        "lumi, round 1: queued or still at work: connected, but no answer in 39 s after its order"
        " of 1970-01-01 00:00:01 UTC"
    )


def test_the_run_ended_first() -> None:
    run = Run()
    run.feed(sent(*SITES), StopRequested(at=9.0, reason="Ctrl-C", after_round=False))
    assert "the run was stopped before it answered (Ctrl-C)" in told(run).sentence
    run = Run()
    run.feed(sent(*SITES), RunFailed(at=9.0, reason="disk full"))
    assert "the run failed before it answered (disk full)" in told(run).sentence


def test_what_was_before_a_run_was_let_go_on_shows_nothing_of_the_round_made_again() -> None:
    run = Run(run_plan(evaluate=False))
    run.feed(sent(*SITES), SiteLeft(at=5.0, site="lumi", code="revoked"), accepted("cesga"))
    run.feed(StopRequested(at=9.0, reason="ana", after_round=False), RunReopened(at=10.0, by="ana"))
    assert told(run).sentence == "lumi, round 1: queued: its order has not gone out yet"
    assert told(run, "cesga").evidence == ()
    run.feed(replace(sent(*SITES), at=11.0), replace(accepted("cesga"), at=12.0))
    assert told(run, "cesga").evidence == (6, 7)
    assert "on its order of 1970-01-01 00:00:11 UTC" in told(run).sentence


def test_under_way() -> None:
    run = Run()
    assert told(run).sentence == "lumi, round 1: queued: its order has not gone out yet"
    run.feed(sent(*SITES))
    assert "still awaited" in told(run).sentence


def test_not_selected() -> None:
    run = Run(run_plan(select="random", per_round=1, quorum=1, evaluate=False))
    (asked,) = run.state.sites("train", "asked")
    run.feed(sent(asked), accepted(asked))
    sentences = [found.sentence for found in explain(run.log, None, 1)]
    assert sum("not selected: rounds.select=random took 1 of 3 sites" in s for s in sentences) == 2


def test_not_needed() -> None:
    run = Run(run_plan(select="random", per_round=2, extra=1, evaluate=False))
    run.feed(sent(*SITES), accepted("cesga"), accepted("lumi"))
    assert "not needed: enough others" in told(run, "cyfronet").sentence


def test_asked_several_times() -> None:
    run = after(*[refused("lumi", "transfer_failed")] * 2, retries=1)
    run.feed(DEADLINE)
    assert told(run).sentence.endswith("no longer has the result to send, asked 2 times")


def test_every_site_and_round_by_default() -> None:
    run = after(accepted("lumi"))
    run.feed(made(1))
    assert [(e.round, e.site) for e in explain(run.log, None, None)] == [
        (number, site) for number in (1, 2) for site in SITES
    ]
    assert explain(run.log, "marenostrum", None) == ()
    assert explain([], None, None) == ()


def test_in_async_mode_a_round_is_a_model() -> None:
    run = Run(run_plan(mode="async", quorum=1, buffer=2, evaluate=False))
    run.feed(sent(*SITES), accepted("cesga"), accepted("lumi"), made(1))
    assert told(run).contributed
    assert told(run, "cyfronet").sentence == (
        "cyfronet, model 1: still at work on its order of 1970-01-01 00:00:01 UTC: its update goes"
        " into a later model"
    )
    run.feed(accepted("cyfronet"), accepted("cesga", round=2), made(2))
    assert (
        "its update (10 examples) that was 1 model behind went into"
        in told(run, "cyfronet", 2).sentence
    )


def test_in_async_mode_a_frozen_site_is_not_at_work_for_ever() -> None:
    run = Run(run_plan(mode="async", quorum=1, buffer=2, rounds=9, evaluate=False))
    run.feed(sent(*SITES), accepted("cesga"), accepted("cyfronet"), made(1))
    run.feed(sent("cesga", "cyfronet", round=2))
    assert told(run, number=2).sentence == (
        "lumi, model 2: still awaited on its order of 1970-01-01 00:00:01 UTC"
    )
    run.feed(accepted("cesga", round=2, at=45.0), accepted("cyfronet", round=2, at=45.0))
    run.feed(made(2, at=45.0))
    assert told(run, number=2).sentence == (
        "lumi, model 2: still at work on its order of 1970-01-01 00:00:01 UTC, beyond its deadline"
        " of 30 s: its update goes into a later model"
    )
    run.feed(SiteLost(at=46.0, site="lumi"))
    assert told(run, number=3).sentence == "lumi, model 3: offline since 1970-01-01 00:00:46 UTC"
    run.feed(sent("cesga", "cyfronet", round=3))
    run.feed(accepted("cesga", round=3, at=47.0), accepted("cyfronet", round=3, at=47.0))
    run.feed(made(3, at=47.0))
    found = told(run, number=3)
    assert found.sentence == (
        "lumi, model 3: offline since 1970-01-01 00:00:46 UTC, and its order not answered"
    )
    assert [run.log[number] for number in found.evidence] == [
        sent(*SITES), SiteLost(at=46.0, site="lumi"), made(3, at=47.0)
    ]  # fmt: skip


def test_in_async_mode_an_order_that_was_given_up_is_not_forgotten() -> None:
    run = Run(run_plan(mode="async", quorum=1, buffer=2, rounds=9, evaluate=False))
    run.feed(sent(*SITES), accepted("cesga", at=20.0), accepted("cyfronet", at=20.0))
    run.feed(made(1, at=20.0), replace(DEADLINE, at=31.0), sent("cesga", "cyfronet", round=2))
    run.feed(accepted("cesga", round=2), accepted("cyfronet", round=2), made(2, at=40.0))
    assert told(run, number=2).sentence == (
        "lumi, model 2: queued or still at work: connected, but no answer in 39 s after its order"
        " of 1970-01-01 00:00:01 UTC"
    )
