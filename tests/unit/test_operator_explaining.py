"""`fedfactory explain` in words: alike rounds in one sentence, refused evaluations among them."""

from __future__ import annotations

import io

from fedfactory.operator.explaining import explained, explained_lines
from fedfactory.report.reporter import make_reporter
from fedfactory.rounds.events import (
    Event,
    OrdersSent,
    ReplyRefused,
    RunStarted,
    SiteLeft,
)
from fedfactory.rounds.history import History, append
from tests.run_events import accepted, made
from tests.run_plans import run_plan
from tests.unit.report_runs import Story

SITES = ("cesga", "lumi")


def _lines(events: list[Event], site: str | None = None, *, evidence: bool = False) -> list[str]:
    return list(explained_lines(explained(events, site, None), events, evidence=evidence))


def _refusing_evaluations(rounds: int) -> list[Event]:
    events: list[Event] = [
        RunStarted(at=0.0, plan=run_plan(sites=SITES, rounds=rounds, quorum=2), connected=SITES)
    ]
    for number in range(1, rounds + 1):
        events.append(OrdersSent(at=1.0, round=number, kind="train", sites=SITES))
        events += [accepted(site, round=number) for site in SITES]
        events.append(made(number))
        events.append(OrdersSent(at=1.0, round=number, kind="evaluate", sites=SITES))
        events += [
            ReplyRefused(
                at=1.0, round=number, kind="evaluate", site=site, code="policy_task", detail=""
            )
            for site in SITES
        ]
    return events


def test_refused_evaluations_are_named_with_their_rounds() -> None:
    events = _refusing_evaluations(4)
    told = _lines(events)
    assert told == [
        f"{site}, round 1-4: did not evaluate: refused by policy_task:"
        " the site's policy does not allow this task"
        for site in SITES
    ]
    history = History.new()
    for event in events:
        history = append(history, event)
    assert [found.number for found in history.rounds] == [1, 2, 3, 4]


def test_a_long_row_of_refusals_shows_the_first_events() -> None:
    told = _lines(_refusing_evaluations(40), "cesga", evidence=True)
    at = told.index(next(line for line in told if "did not evaluate" in line))
    assert told[at].startswith("cesga, round 1-40: did not evaluate: refused by policy_task")
    assert "ReplyRefused evaluate cesga policy_task" in told[at + 1]
    assert told[at + 5].strip().startswith("and 36 events more, to event ")


def test_a_revoked_site_takes_two_lines_however_many_rounds_follow() -> None:
    plan = run_plan(sites=SITES, rounds=80, quorum=1, evaluate=False)
    events: list[Event] = [RunStarted(at=0.0, plan=plan, connected=SITES)]
    for number in range(1, 81):
        there = SITES if number < 7 else SITES[:1]
        if number == 7:
            events.append(SiteLeft(at=50.0, site="lumi", code="revoked"))
        events.append(OrdersSent(at=60.0, round=number, kind="train", sites=there))
        events += [accepted(site, round=number) for site in there]
        events.append(made(number))
    told = _lines(events, evidence=True)
    assert len(told) == 2
    assert told[0].startswith("lumi, round 7-80: cut off since 1970-01-01 00:00:50 UTC: ")
    assert "SiteLeft lumi revoked" in told[1]


def test_the_table_says_that_no_evaluation_succeeded() -> None:
    said = "no site evaluated the model in any round"
    assert said in _table(refuse=True)
    assert said not in _table(refuse=False)


def _table(*, refuse: bool) -> str:
    story = Story()
    for number in (1, 2):
        story.sent(number)
        for site in story.sites:
            story.accept(number, site)
        story.trained(number)
        story.sent(number, "evaluate")
        for site in story.sites:
            if refuse or site == "lumi":
                story.refuse(number, site, "evaluate")
            else:
                story.accept(number, site, "evaluate")
        if not refuse:
            story.measured(number)
    stream = io.StringIO()
    make_reporter(stream, form="words", sites_note="").finish(story.summary(), "/runs/r")
    return stream.getvalue()
