"""What is shown, fixed by golden files; what others wrote is shown and not obeyed."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from report_runs import PRIVACY, Story
from rich.console import Console
from rich.spinner import Spinner

from fedfactory.report.live import render
from fedfactory.report.reporter import make_reporter
from fedfactory.report.table import print_results
from fedfactory.report.text import spans
from fedfactory.rounds.history import History

GOLDEN = Path(__file__).parent.parent / "golden"
NOTE = "simulated here, named after cesga, cyfronet, lumi"


def _troubled() -> Story:
    """Two rounds; cyfronet refuses to train in the first, lumi is silent in its evaluation."""
    story = Story(privacy=PRIVACY)
    story.sent(1)
    story.accept(1, "cesga")
    story.refuse(1, "cyfronet", detail="tensor [/x] \x1b[2J")
    story.accept(1, "lumi")
    story.trained(1)
    story.sent(1, "evaluate")
    story.accept(1, "cesga", "evaluate")
    story.accept(1, "cyfronet", "evaluate")
    story.deadline(1, "evaluate")
    story.measured(1)
    story.whole_round(2)
    return story


def _seen(history: History, *, stage: str | None = None, width: int = 80, height: int = 24) -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    view = render(
        history, stage=stage, note=NOTE, elapsed_s=5.0, width=width, height=height,
        spinner=Spinner("dots"),
    )  # fmt: skip
    with console.capture() as capture:
        console.print(view)
    seen = capture.get()
    assert len(seen.splitlines()) <= height
    assert max(map(len, seen.splitlines())) <= width
    return seen


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_plain_output_is_as_agreed() -> None:
    stream, story = io.StringIO(), _troubled()
    reporter = make_reporter(stream, form="words", sites_note=NOTE)
    reporter.stage("waiting for the sites")
    for event in story.events:
        reporter.event(event)
    summary = story.summary()
    summary["baselines"] = {
        "metric": "accuracy",
        "local_only": dict.fromkeys(story.sites, 0.875),
        "pooled": 0.986,
        "shared": 0.981,
    }
    reporter.finish(summary, "/runs/r")
    assert _lines(stream.getvalue()) == _lines((GOLDEN / "report_plain.txt").read_text())


def test_what_broke_in_and_what_was_best_are_told() -> None:
    stream, story = io.StringIO(), Story(rounds=2)
    story.sent(1)
    story.died()
    story.whole_round(1)
    story.whole_round(2)
    print_results(story.summary(), "/runs/r", stream)
    shown = stream.getvalue()
    assert "interrupted      round 1: the run's process died, and went on in round 1" in shown
    assert "best             round 2 (loss 0.5000)" in shown


def test_long_runs_are_cut_and_say_where_the_rest_is() -> None:
    stream, story = io.StringIO(), Story(rounds=31)
    for number in range(1, 32):
        story.whole_round(number)
    print_results(story.summary(), "/runs/[/r]", stream)
    assert _lines(stream.getvalue()) == _lines((GOLDEN / "report_long.txt").read_text())


def test_start_up_shows_its_stage() -> None:
    assert "starting the sites' agents" in _seen(History.new(), stage="starting the sites' agents")


def test_mid_round_says_who_is_awaited() -> None:
    story = Story()
    story.sent(1)
    story.accept(1, "cesga")
    assert "round 1 of 2: training, waiting for cyfronet, lumi" in _seen(story.history)


def test_after_the_rounds_the_stage_is_shown_again() -> None:
    assert "measuring" in _seen(_troubled().history, stage="measuring what each would reach")


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_refusal_leaves_the_numbers_readable(width: int) -> None:
    story = Story(rounds=2)
    story.sent(1)
    story.refuse(1, "cyfronet", detail="x" * 300)
    story.accept(1, "cesga")
    story.deadline(1)
    story.trained(1)
    story.sent(1, "evaluate")
    story.accept(1, "cesga", "evaluate")
    story.deadline(1, "evaluate")
    story.measured(1)
    seen = _seen(story.history, width=width)
    for expected in ("round", "1.0000", "60.0 %", "last round without cyfronet"):
        assert expected in seen


def test_25_sites_and_100_rounds_fit() -> None:
    story = Story([f"site-{i:02d}" for i in range(25)], rounds=100)
    for number in range(1, 100):
        story.whole_round(number)
    story.sent(100)
    seen = _seen(story.history)
    assert "25 of 25" in seen
    assert "waiting for 25 of 25" in seen
    assert "0.0101" in seen  # round 99, the newest


@pytest.mark.parametrize(("status", "reason"), [("failed", "no quorum"), ("stopped", "asked to")])
def test_a_run_that_ended_early_says_why(status: str, reason: str) -> None:
    stream = io.StringIO()
    print_results(_troubled().summary(status, reason), "/runs/r", stream)
    assert f"{status}: {reason}" in stream.getvalue()


def test_rounds_in_short() -> None:
    assert spans([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
