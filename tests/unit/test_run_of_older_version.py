"""A run that an older version began: listed, its models found, and refused by name for all else."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.versions import RUN_FORM, OtherFormError, own_version
from fedfactory.coordinator.desk.desk import Desk
from fedfactory.coordinator.desk.watching import find_model, kept_models
from fedfactory.coordinator.run_facts import read_submission
from fedfactory.coordinator.run_settings import RunSettings
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.coordinator.runs import Runs, row_of, status_of
from fedfactory.identity.roles import Peer, Role
from fedfactory.operator.run_folder import EVENTS, RunFolder
from fedfactory.rounds.log import decode_event, encode_event
from fedfactory.wire.operations import ResumeRequest, StopRequest, WatchRequest
from tests.run_events import Run as Machine
from tests.run_plans import run_plan
from tests.unit.test_coordinator_runs import add

GOLDEN = Path(__file__).parents[1] / "golden" / "run_form_1"
RUN_ID = "20261201-165205-5eb0"
REFUSED = (
    rf"the run {RUN_ID} was begun by an older version of fedfactory: its files have form 1, and"
    rf" {own_version()} reads form {RUN_FORM}; .* start a new run .*model={RUN_ID}"
)


def lay(folder: Path, *, ended: bool) -> Path:
    """Lay the old run down as its coordinator left it: two rounds of two sites."""
    home = folder / RUN_ID
    home.mkdir(parents=True)
    for name in ("submission.json", "settings.json", "summary.json"):
        shutil.copy(GOLDEN / name, home / name)
    lines = (GOLDEN / "events.jsonl").read_text().splitlines()
    if not ended:
        (home / "summary.json").unlink()
        del lines[-3:]
    with sqlite3.connect(home / JOURNAL) as database:
        database.execute("CREATE TABLE events (number INTEGER PRIMARY KEY, line TEXT NOT NULL)")
        database.executemany("INSERT INTO events VALUES (?, ?)", enumerate(lines))
    database.close()
    (home / "models").mkdir()
    for line in lines:
        if (model := json.loads(line).get("model")) is not None:
            (home / "models" / model["digest"].removeprefix("sha256:")).touch()
    return home


def test_an_ended_run_is_listed_with_what_it_was(tmp_path: Path) -> None:
    lay(tmp_path, ended=True)
    runs = Runs(tmp_path)
    run = runs.find(RUN_ID)
    row = row_of(run, status_of(run, ()), None)
    assert (row.run_id, row.task, row.strategy) == (RUN_ID, "breast_cancer", "fedavg")
    assert (row.status, row.round, row.rounds) == ("completed", 2, 2)
    assert (row.operator, row.sites) == ("operator", ("site-01", "site-02"))
    assert row.submitted_at < row.ended_at < row.submitted_at + 60  # type: ignore[operator]
    assert runs.unfinished() == []
    add(runs, "new")
    assert [found.run_id for found in Runs(tmp_path).all()] == [RUN_ID, "new"]


def test_its_models_can_still_begin_another_run(tmp_path: Path) -> None:
    lay(tmp_path, ended=True)
    run = Runs(tmp_path).find(RUN_ID)
    assert sorted(kept_models(run)) == [0, 1, 2]
    number, ref = find_model(run, None) or (0, run.facts.initial)
    assert (number, ref.digest) == (2, run.summary()["model"]["digest"])


def test_an_unfinished_run_waits_for_good_and_says_why(tmp_path: Path) -> None:
    lay(tmp_path, ended=False)
    runs = Runs(tmp_path)
    run = runs.find(RUN_ID)
    assert runs.unfinished() == []
    assert status_of(run, ()) == "suspended"
    assert row_of(run, "suspended", None).reason.startswith(f"the run {RUN_ID} was begun by an old")
    with pytest.raises(OtherFormError, match=REFUSED):
        _ = run.taken


def test_what_would_go_on_with_it_is_refused_by_name(tmp_path: Path) -> None:
    lay(tmp_path, ended=False)
    runs = Runs(tmp_path)
    schedule = SimpleNamespace(status=lambda run: status_of(run, ()), queue=list)
    desk = Desk(
        SimpleNamespace(name="hub"),  # type: ignore[arg-type]
        runs,
        schedule,  # type: ignore[arg-type]
        registry=None,  # type: ignore[arg-type]
        registrar=None,  # type: ignore[arg-type]
        signer=None,  # type: ignore[arg-type]
        wake=threading.Event(),
    )
    ana = Peer(role=Role.OPERATOR, name="ana")
    for ask in (
        lambda: desk.watch(ana, WatchRequest(run_id=RUN_ID, after=0, follow=False)),
        lambda: desk.stop(ana, StopRequest(run_id=RUN_ID, mode="now")),
        lambda: desk.resume(ana, ResumeRequest(run_id=RUN_ID)),
    ):
        with pytest.raises(OtherFormError, match=REFUSED):
            ask()


def test_its_files_are_refused_by_name(tmp_path: Path) -> None:
    home = lay(tmp_path, ended=False)
    with pytest.raises(OtherFormError, match=REFUSED):
        RunSettings.read(home / "settings.json")
    with Journal.open(home / JOURNAL) as journal, pytest.raises(OtherFormError, match=REFUSED):
        journal.events()


def test_a_folder_that_followed_it_is_refused_by_name(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "events.jsonl", tmp_path / EVENTS)
    with pytest.raises(OtherFormError, match=REFUSED):
        RunFolder(tmp_path, RUN_ID)


def test_a_newer_form_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    line = json.loads(encode_event(0, Machine(run_plan()).log[0]))
    assert (line["form"], line["version"]) == (RUN_FORM, own_version())
    with pytest.raises(OtherFormError, match=r"the run r was begun by fedfactory 9\.1: .*form 7"):
        decode_event(json.dumps({**line, "form": 7, "version": "9.1"}))
    home = add(Runs(tmp_path), "later").folder
    raw = json.loads((home / "submission.json").read_text())
    (home / "submission.json").write_text(json.dumps({**raw, "form": 7, "version": "9.1"}))
    with pytest.raises(OtherFormError, match=r"the run later was begun by fedfactory 9\.1"):
        _ = Runs(tmp_path).find("later").taken


@pytest.mark.parametrize("text", [b"[]", b"{", b"{}", b'{"plan": 3}', b'{"submission": {}}'])
def test_what_is_no_submission_of_any_form_is_none(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_submission(text)


def test_settings_that_are_written_are_read(tmp_path: Path) -> None:
    settings = RunSettings(
        plan=run_plan(), signing_key="k", anchors="a", any_strategy_class=False,
        run_folder=str(tmp_path), start_timeout_s=1.0,
    )  # fmt: skip
    settings.write(tmp_path / "settings.json")
    assert RunSettings.read(tmp_path / "settings.json") == settings
    with pytest.raises(ProtocolError):
        from_json(RunSettings, (tmp_path / "settings.json").read_bytes())  # the form is checked
