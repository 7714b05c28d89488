"""What `fedfactory local` tells of a run whose coordinator died."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.local.run import end_broken, stopped_by_signal
from fedfactory.operator.run_folder import EVENTS, SUMMARY
from fedfactory.report.saved import read_summary
from fedfactory.rounds.log import encode_event
from tests.run_events import Run
from tests.run_plans import blob, run_plan


def test_a_run_that_had_not_begun_has_no_summary(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text("")
    with pytest.raises(EnvironmentFailedError, match=r"code 1 before the run began; see .*logs"):
        end_broken(tmp_path, "the coordinator ended with code 1", 9.0)
    assert not (tmp_path / SUMMARY).exists()


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_run_that_a_signal_stopped_says_so(tmp_path: Path, number: int, name: str) -> None:
    run = Run(run_plan(evaluate=False))
    run.finish_round(1)
    lines = [encode_event(number, event) for number, event in enumerate(run.log)]
    (tmp_path / EVENTS).write_text("\n".join(lines) + "\n")
    told = {**end_broken(tmp_path, "x", 9.0), "status": "stopped", "reason": "stopped by operator"}
    result = stopped_by_signal(tmp_path, told, number)
    assert result == {**told, "reason": f"stopped by {name}"}
    assert read_summary(tmp_path / SUMMARY) == result


def test_a_run_that_had_begun_keeps_what_it_reached(tmp_path: Path) -> None:
    run = Run(run_plan(evaluate=False))
    run.finish_round(1)
    lines = [encode_event(number, event) for number, event in enumerate(run.log)]
    (tmp_path / EVENTS).write_text("\n".join(lines) + "\n")
    result = end_broken(tmp_path, "the coordinator ended with code 1", 9.0)
    assert (result["status"], result["reason"]) == ("failed", "the coordinator ended with code 1")
    assert [entry["round"] for entry in result["rounds"]] == [1, 2]
    assert result["model"]["digest"] == blob(1).digest
    assert read_summary(tmp_path / SUMMARY) == result
