"""What breaks in one run is that run's: the others go on, and `fedfactory runs` says why."""

import json
import sqlite3

import pytest

from fedfactory.coordinator.run_process import RunProcess
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.coordinator.running.run_files import SUMMARY
from fedfactory.coordinator.running.run_log import LAST_GASP
from fedfactory.coordinator.runs import STOP, SUSPENDED, Runs, StopWish
from fedfactory.coordinator.schedule import Schedule
from fedfactory.rounds.events import RunStarted
from tests.unit.test_coordinator_runs import add
from tests.unit.test_run_process import Door, silent_processes


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def make_folder(name):
    return lambda folder: (folder / name).mkdir()


class Rig:
    """Two runs side by side, by the real parts; `look` is one look of the daemon at them."""

    def __init__(self, folder):
        self.folder = folder
        self.runs = Runs(folder / "runs")
        self.bad, self.good = add(self.runs, "bad"), add(self.runs, "good")
        self.now = 0.0
        self.schedule = self.scheduled()

    def scheduled(self):
        return Schedule(
            self.runs,
            2,
            lambda run: RunProcess(run, Door(), flower_home=self.folder, wake=lambda: None),
        )

    def start_again(self):
        """Start another coordinator on the same folder."""
        self.schedule.close()
        self.runs = Runs(self.bad.folder.parent)
        self.bad, self.good = self.runs.find("bad"), self.runs.find("good")
        self.schedule = self.scheduled()

    def look(self):
        self.now += 0.1
        self.schedule.tick(self.now)

    @property
    def rows(self):
        return {run.run_id: self.schedule.row(run) for run in self.runs.all()}


@pytest.fixture
def rig(tmp_path, monkeypatch):
    silent_processes(tmp_path, monkeypatch)
    rig = Rig(tmp_path)
    yield rig
    rig.schedule.close()


WAITS = {
    "wish torn": write(STOP, "{"),
    "wish of a wrong type": write(STOP, "[]"),
    "wish a folder": make_folder(STOP),
    "last words a folder": make_folder(LAST_GASP),
    "suspended torn": write(SUSPENDED, "\x00"),
    "suspended a folder": make_folder(SUSPENDED),
}


@pytest.mark.parametrize("damage", WAITS.values(), ids=WAITS)
def test_a_damaged_run_that_waits_is_suspended_and_the_others_start(rig, damage):
    damage(rig.bad.folder)
    for _ in range(2):
        rig.look()
        rows = rig.rows
        assert (rows["bad"].status, rows["good"].status) == ("suspended", "running")
        assert rows["bad"].reason
        assert rig.schedule.queue() == []
        rig.start_again()


def test_a_run_damaged_on_its_way_is_suspended_and_the_others_go_on(rig):
    rig.look()
    (rig.bad.folder / STOP).write_text("[]")
    rig.look()
    assert rig.rows["bad"].status == "suspended"
    assert "(runs/bad/stop.json: " in rig.rows["bad"].reason
    assert rig.rows["good"].status == "running"
    rig.bad.let_go_on("lead")
    rig.look()
    assert {row.status for row in rig.rows.values()} == {"running"}


def test_what_nobody_thought_of_is_that_runs_too(rig, monkeypatch, caplog):
    rig.look()
    monkeypatch.setattr(rig.bad, "stop_wish", lambda: {}["secret of a record"])
    rig.look()
    row = rig.rows["bad"]
    assert row.status == "suspended"
    assert "KeyError" in row.reason
    assert "fedfactory resume bad" in row.reason
    assert "secret" not in row.reason
    assert "Traceback" in caplog.text
    assert rig.rows["good"].status == "running"


@pytest.mark.parametrize("text", ["{", "[]", '{"reason": 1}', '{"status": "splendid"}'])
def test_results_that_are_damaged_are_told_of_that_run_alone(rig, text):
    rig.look()
    (rig.bad.folder / SUMMARY).write_text(text)
    (rig.good.folder / SUMMARY).write_text(json.dumps({"status": "stopped", "reason": "enough"}))
    rig.good.wish_stop(StopWish(reason="enough", after_round=False))
    rig.look()
    rows = rig.rows
    assert (rows["bad"].status, rows["good"].status) == ("failed", "stopped")
    assert "summary.json cannot be read" in rows["bad"].reason


@pytest.mark.parametrize("line", ["{", "[]", '{"event": "OrdersSent", "at": 1.0, "round": "x"}'])
def test_a_journal_that_holds_what_it_should_not_is_told_of_that_run_alone(rig, line):
    with Journal.open(rig.bad.folder / JOURNAL) as journal:
        plan = rig.bad.taken.plan
        journal.append([RunStarted(at=1.0, plan=plan, connected=())])
    with sqlite3.connect(rig.bad.folder / JOURNAL) as database:
        database.execute("UPDATE events SET line = ?", (line,))
    database.close()
    rig.look()
    assert {row.run_id: row.status for row in rig.rows.values()}["good"] == "running"


def test_a_wish_that_cannot_be_kept_is_kept_in_mind(rig, monkeypatch):
    """A disk that takes nothing: the run stays suspended as long as this coordinator lives."""

    def full(path, content):
        raise OSError(28, "No space left on device")

    rig.look()
    (rig.bad.folder / STOP).write_text("[]")
    monkeypatch.setattr("fedfactory.coordinator.runs.write_durably", full)
    for _ in range(2):
        rig.look()
        assert rig.rows["bad"].status == "suspended"
