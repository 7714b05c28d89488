"""Following a run: every event once in the run's folder, whatever is cut, and when."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import ProtocolError, UsageError
from fedfactory.operator import following
from fedfactory.operator.following import Follower
from fedfactory.operator.run_folder import EVENTS, METRICS, SUMMARY, RunFolder, read_line
from fedfactory.operator.run_folder import MODEL as MODEL_FILE
from tests.unit.operator_runs import MODEL, RUN_ID, PlayedWatch, events, lines, summary_of

TICK_S = 0.01


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch):
    monkeypatch.setattr(following, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(following, "LONGEST_PAUSE_S", 0.002)
    monkeypatch.setattr(following, "STOP_AGAIN_S", 0.001)


def followed(watch: PlayedWatch, folder: Path) -> tuple[Follower, list]:
    follower = Follower(watch, RUN_ID, folder)
    try:
        return follower, [event for event in follower.events(tick_s=TICK_S) if event is not None]
    finally:
        follower.close()


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (EVENTS, METRICS, SUMMARY, MODEL_FILE)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    followed(PlayedWatch(lines(), summary_of(), []), folder)
    return files(folder)


def test_an_undisturbed_follower_keeps_all_of_the_run(tmp_path):
    follower, seen = followed(PlayedWatch(lines(), summary_of(), []), tmp_path)
    assert seen == events()
    assert (tmp_path / EVENTS).read_text().splitlines() == lines()
    finished = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [entry["round"] for entry in finished] == [1, 2]
    assert finished[0]["sites"]["lumi"]["status"] == "refused"
    assert (tmp_path / MODEL_FILE).read_bytes() == MODEL
    told = json.loads((tmp_path / SUMMARY).read_text())
    assert told == follower.summary
    assert told["model"]["file"] == MODEL_FILE
    assert follower.status == "completed"


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, len(lines()) + 1), max_size=6),
    deaths=st.lists(st.integers(0, len("\n".join(lines())) + 1), max_size=3),
    away=st.integers(0, 3),
)
def test_wherever_it_is_cut_the_files_are_the_same(cuts, deaths, away, undisturbed):
    """`cuts` break streams off; each of `deaths` leaves so many bytes of events.jsonl behind."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = "".join(f"{line}\n" for line in lines()).encode()
        for death in deaths:
            held = (folder / EVENTS).read_bytes() if (folder / EVENTS).exists() else b""
            (folder / EVENTS).write_bytes(max(held, whole[:death], key=len))
            (folder / METRICS).write_bytes(b'{"round": 1, "half a li')
            RunFolder(folder, RUN_ID).close()
        _, seen = followed(PlayedWatch(lines(), summary_of(), cuts, away=away), folder)
        assert seen == events()
        assert files(folder) == undisturbed


def test_it_asks_only_for_what_it_does_not_have(tmp_path):
    watch = PlayedWatch(lines(), summary_of(), [4, 0, 3])
    followed(watch, tmp_path)
    assert watch.asked == [0, 4, 4, 7]
    again = PlayedWatch(lines(), summary_of(), [])
    followed(again, tmp_path)
    assert again.asked == [len(lines())]


def test_a_wish_to_stop_is_told_until_it_is_heard(tmp_path):
    watch = PlayedWatch(lines(), summary_of(), [0] * 50, away=2)
    follower = Follower(watch, RUN_ID, tmp_path)
    follower.ask_to_stop("now")
    list(follower.events(tick_s=TICK_S))
    follower.close()
    assert watch.stopped == ["now"]


def test_trouble_is_shown_while_it_lasts(tmp_path):
    follower = Follower(PlayedWatch(lines(), summary_of(), [0] * 8), RUN_ID, tmp_path)
    troubled = [follower.trouble is not None for _ in follower.events(tick_s=0.0001)]
    follower.close()
    assert any(troubled)
    assert follower.trouble is None


def test_a_run_that_is_not_there_is_no_reason_to_try_again(tmp_path):
    follower = Follower(PlayedWatch(lines(), summary_of(), []), "no-such-run", tmp_path)
    with pytest.raises(UsageError, match="no run no-such-run"):
        list(follower.events(tick_s=TICK_S))
    follower.close()


def test_a_gap_is_never_written(tmp_path):
    told = lines()
    del told[3]
    with pytest.raises(ProtocolError, match="expected event 3 of the run, found 4"):
        followed(PlayedWatch(told, summary_of(), []), tmp_path)
    kept = (tmp_path / EVENTS).read_text().splitlines()
    assert kept == lines()[: len(kept)]


def test_a_run_that_goes_on_after_its_end_has_no_summary_meanwhile(tmp_path):
    followed(PlayedWatch(lines(), summary_of(), []), tmp_path)
    more = lines(3)[len(lines()) :]
    folder = RunFolder(tmp_path, RUN_ID)
    folder.add([read_line(more[0])])
    assert not (tmp_path / SUMMARY).exists()
    folder.close()


def test_one_writer(tmp_path):
    held = RunFolder(tmp_path, RUN_ID)
    with pytest.raises(UsageError, match="another process follows a run into this folder"):
        RunFolder(tmp_path, RUN_ID)
    held.close()
    RunFolder(tmp_path, RUN_ID).close()


def test_a_folder_of_another_run_is_left_alone(tmp_path):
    followed(PlayedWatch(lines(), summary_of(), []), tmp_path)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=f"holds the run {RUN_ID}"):
        RunFolder(tmp_path, "another")
    assert files(tmp_path) == before


@pytest.mark.parametrize("content", [b"not json\n", b'{"seq": 0}\n', b"\xff\xfe\n"])
def test_what_is_no_run_is_refused_and_kept(tmp_path, content):
    (tmp_path / EVENTS).write_bytes(content)
    with pytest.raises(UsageError, match="not a run's events"):
        RunFolder(tmp_path, RUN_ID)
    assert (tmp_path / EVENTS).read_bytes() == content
