"""The event log reads back what was written; the history counts each answer once."""

from __future__ import annotations

import pytest

from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import (
    DeadlinePassed,
    Event,
    Finish,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    ReplyRefused,
    RunStarted,
    SiteLost,
)
from fedfactory.rounds.history import History, append
from fedfactory.rounds.log import encode_event, read_log
from fedfactory.rounds.summary import metrics_line, summary
from tests.run_events import accepted
from tests.run_plans import run_plan

BLOB = BlobRef(digest="sha256:" + "a" * 64, bytes=9)
NEXT = BlobRef(digest="sha256:" + "b" * 64, bytes=9)


def _plan() -> RunPlan:
    return run_plan(rounds=1, sites=("a", "b", "c"), quorum=1, deadline_s=5.0, initial=BLOB)


EVENTS: list[Event] = [
    RunStarted(at=10.0, plan=_plan(), connected=("a", "b", "c")),
    OrdersSent(at=11.0, round=1, kind="train", sites=("a", "b", "c")),
    accepted("a", at=12.0, examples=5),
    ReplyRefused(at=12.5, round=1, kind="train", site="b", code="work_failed", detail=""),
    SiteLost(at=13.0, site="c"),
    DeadlinePassed(at=16.0, round=1, kind="train"),
    ModelAggregated(at=17.0, round=1, model=NEXT, state=None),
    OrdersSent(at=17.5, round=1, kind="evaluate", sites=("a", "b", "c")),
    accepted("a", "evaluate", at=18.0),
    DeadlinePassed(at=18.5, round=1, kind="evaluate"),
    MetricsAggregated(at=19.0, round=1, metrics={"loss": 0.5, "accuracy": 0.9}),
]


def _fold(events: list[Event]) -> History:
    history = History.new()
    for event in events:
        history = append(history, event)
    return history


def test_the_log_reads_back_what_was_written() -> None:
    lines = [encode_event(i, e) + "\n" for i, e in enumerate(EVENTS)]
    assert list(read_log(lines)) == EVENTS
    assert list(read_log([*lines[:-1], lines[-1][:-5]])) == EVENTS[:-1]


@pytest.mark.parametrize("line", ["{}\n", "nonsense\n", '{"seq":0,"event":"Nope"}\n'])
def test_a_malformed_line_is_named(line: str) -> None:
    with pytest.raises(ProtocolError, match="line 2"):
        list(read_log([encode_event(0, EVENTS[0]) + "\n", line]))


def test_summary_names_who_took_part_and_why_others_did_not() -> None:
    end = Finish(status="completed", reason="", model=NEXT)
    found = summary(_fold(EVENTS), end, traffic={}, model_file="m")
    (line,) = found["rounds"]
    assert line == metrics_line(_fold(EVENTS), 1)
    assert (line["seconds"], line["train_seconds"]) == (9.0, 7.0)
    assert {s: p["status"] for s, p in line["sites"].items()} == {
        "a": "took_part", "b": "refused", "c": "no_answer",
    }  # fmt: skip
    assert "log" in line["sites"]["b"]["reason"]
    assert "not connected" in line["sites"]["c"]["reason"]
    assert found["final"] == {"loss": 0.5, "accuracy": 0.9}
    assert found["never_took_part"] == ["b", "c"]
    assert "also for runs beside it" in found["bytes_count"]


def test_an_answer_counts_once() -> None:
    twice = [*EVENTS[:3], accepted("a", at=12.0, examples=99), *EVENTS[3:]]
    assert _fold(twice).rounds[0].parts["a"].examples == 5


def test_a_part_that_an_event_left_alone_is_not_made_again() -> None:
    """Else each answer costs as much as there are sites."""
    before = _fold(EVENTS[:3])
    after = append(before, accepted("b", at=12.0))
    assert before.current is not None
    assert after.current is not None
    assert after.current.parts["b"].status == "took_part"
    assert after.current.parts["a"] is before.current.parts["a"]
    assert after.current.parts["a"].status == "took_part"
