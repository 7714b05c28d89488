"""Which deaths of a run's ServerApp count against the run."""

import pytest

from fedfactory.coordinator.run_process import RunProcess
from fedfactory.coordinator.runs import Runs
from fedfactory.coordinator.supervision import DEATHS_TO_SUSPEND
from tests.unit.test_coordinator_runs import add


class Door:
    """The gateway, with nobody at it."""

    def open_run(self, run_id, sites, max_upload_bytes):
        pass

    def close_run(self, run_id):
        pass

    def subscribe(self, listener):
        pass

    def unsubscribe(self, listener):
        pass

    def traffic(self):
        return {}


class Flower:
    """SuperLink and its client: a run that is handed over has ended at the next look."""

    def __init__(self):
        self.epoch, self.starts_apps, self.handed = 1, True, 0
        self.is_starter_stopped = False

    @property
    def client(self):
        return self

    def start_run(self, link, settings):
        self.handed += 1
        return self.handed

    def stop_run(self, run):
        pass

    def why_ended(self, run):
        return "ServerApp failed with exception: no space left on device"


@pytest.fixture
def flower():
    return Flower()


@pytest.fixture
def process(tmp_path, flower, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    process = RunProcess(add(Runs(tmp_path / "runs"), "run"), Door(), flower)
    yield process
    process.close()


def ticks(process, flower, number):
    return [process.tick(100.0 * n, flower, frozenset) for n in range(1, number + 1)]


def test_a_run_that_dies_by_itself_again_and_again_is_suspended_and_says_why(process, flower):
    assert "suspended" in ticks(process, flower, 3 * DEATHS_TO_SUSPEND)
    assert flower.handed == DEATHS_TO_SUSPEND
    reason = process.run.suspended().reason
    assert "no space left on device" in reason
    assert "runs/run/serverapp.log" in reason


def test_what_its_log_ends_with_is_told(process, flower):
    (process.run.folder / "serverapp.log").write_text("begins\nERROR OSError: the disk is full\n")
    ticks(process, flower, 3 * DEATHS_TO_SUSPEND)
    assert "(last: ERROR OSError: the disk is full)" in process.run.suspended().reason


def test_the_deaths_of_flower_s_own_programs_are_no_run_s(process, flower):
    for number in range(1, 3 * DEATHS_TO_SUSPEND):
        flower.starts_apps = number % 2 == 1
        assert process.tick(100.0 * number, flower, frozenset) == "going"
    assert flower.handed > DEATHS_TO_SUSPEND
    assert process.run.suspended() is None


def test_who_says_hello_while_we_look_has_not_died(process, flower, monkeypatch):
    here = frozenset({77})
    monkeypatch.setattr(flower, "why_ended", lambda run: None)
    process.tick(1.0, flower, frozenset)  # handed over
    process.tick(2.0, flower, lambda: here)  # its process is there

    def says_hello(run):
        nonlocal here
        here = frozenset()  # it is known: no stranger any more

    monkeypatch.setattr(flower, "why_ended", says_hello)
    process.tick(3.0, flower, lambda: here)
    assert here == frozenset()
    process.tick(4.0, flower, lambda: frozenset({77}))
    assert flower.handed == 1
