"""A reader that goes away ends nothing; a folder that is no run is a usage error."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import Story

from fedfactory.contracts.errors import UsageError
from fedfactory.report.saved import read_summary
from tests.patience import HANG_S

TALK = """
import sys
from fedfactory.report.reporter import make_reporter
from report_runs import Story
story = Story()
story.whole_round(1)
story.whole_round(2)
reporter = make_reporter(sys.stdout, form="words", sites_note="x")
sys.stdin.readline()  # the reader has gone by now
reporter.stage("a stage")
for event in story.events:
    reporter.event(event)
    reporter.tick()
reporter.finish(story.summary(), "/runs/r")
reporter.close()
sys.exit(7)
"""


def _talk(stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", TALK],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)},
    )


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_that_goes_away_ends_nothing(kind: str) -> None:
    reader, writer = os.pipe() if kind == "pipe" else pty.openpty()
    child = _talk(writer)
    os.close(writer)
    os.close(reader)
    _, errors = child.communicate(b"\n", timeout=HANG_S)
    assert (child.returncode, errors) == (7, b"")


def test_a_summary_reads_back(tmp_path: Path) -> None:
    story = Story()
    story.whole_round(1)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(story.summary("stopped", "asked to")))
    assert read_summary(path)["rounds"][0]["round"] == 1


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"rounds": [{}]}', b"[" * 100_000]
)
def test_what_is_no_summary_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"summary\.json"):
        read_summary(path)


@pytest.mark.parametrize("part", ["rounds", "status", "baselines", "bytes", "model", "final"])
def test_a_summary_that_lacks_a_part_is_a_usage_error(tmp_path: Path, part: str) -> None:
    story = Story()
    story.whole_round(1)
    summary = story.summary()
    del summary[part]
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(summary))
    with pytest.raises(UsageError, match=part):
        read_summary(path)


def test_a_folder_in_the_files_place_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_summary(tmp_path)
