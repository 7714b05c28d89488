"""Evaluation is told as training is: who took part, who did not, and why."""

from __future__ import annotations

import pytest
from report_runs import Story

from fedfactory.contracts.errors import ProtocolError
from fedfactory.rounds.log import decode_event
from fedfactory.rounds.summary import metrics_line


def _until_evaluation(rounds: int = 1) -> Story:
    story = Story(rounds=rounds)
    story.sent(1)
    for site in story.sites:
        story.accept(1, site)
    story.trained(1)
    story.sent(1, "evaluate")
    return story


def test_who_did_not_evaluate_is_named_with_the_reason() -> None:
    story = _until_evaluation()
    story.accept(1, "cesga", "evaluate")
    story.refuse(1, "cyfronet", "evaluate")
    story.deadline(1, "evaluate")
    story.measured(1)
    line = metrics_line(story.history, 1)
    assert {p["status"] for p in line["sites"].values()} == {"took_part"}
    assert line["evaluations"]["cesga"]["status"] == "took_part"
    assert "log" in line["evaluations"]["cyfronet"]["reason"]
    assert line["evaluations"]["lumi"]["status"] == "no_answer"


def test_the_last_round_ends_when_nobody_could_evaluate_it() -> None:
    story = _until_evaluation()
    for site in story.sites:
        story.refuse(1, site, "evaluate")
    assert story.state.ended is not None
    assert story.history.status == story.state.ended.status == "completed"
    assert [r.number for r in story.history.rounds] == [1]
    assert story.history.rounds[0].metrics == {}


def test_silence_ends_the_evaluation_of_a_round() -> None:
    story = _until_evaluation(rounds=2)
    story.deadline(1, "evaluate")
    assert [r.number for r in story.history.rounds] == [1]
    story.whole_round(2)
    assert story.history.status == "completed"


def test_a_late_evaluation_changes_nothing() -> None:
    story = _until_evaluation()
    story.accept(1, "cesga", "evaluate")
    story.deadline(1, "evaluate")
    before = story.history.current
    story.accept(1, "lumi", "evaluate")
    assert story.history.current == before


@pytest.mark.parametrize("seq", ['"x"', "NaN", "true", "0.9", "1e999", "null"])
def test_a_number_that_is_no_number_is_malformed(seq: str) -> None:
    line = f'{{"seq":{seq},"event":"SiteLost","at":1.0,"site":"a"}}'
    with pytest.raises(ProtocolError):
        decode_event(line)


def test_a_line_nested_too_deeply_is_malformed() -> None:
    with pytest.raises(ProtocolError):
        decode_event("[" * 100_000)
