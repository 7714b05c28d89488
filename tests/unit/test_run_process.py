"""Which deaths of a run's process count against the run, and what becomes of the process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedfactory.coordinator import run_process
from fedfactory.coordinator.run_process import RunProcess
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.coordinator.running.run_log import LAST_GASP
from fedfactory.coordinator.runs import Runs, StopWish
from fedfactory.coordinator.supervision import DEATHS_TO_SUSPEND
from fedfactory.rounds.events import StopRequested
from tests.owned_processes import lives
from tests.patience import HANG_S, until
from tests.unit.test_coordinator_runs import add


class Door:
    """The gateway, with nobody at it."""

    def __init__(self):
        self.boxes = []

    def open_mail(self, run_id, box):
        self.boxes.append(box)

    def close_mail(self, run_id, box):
        self.boxes.remove(box)

    def traffic(self):
        return {}

    def nothing(self, *_):
        pass

    open_run = close_run = subscribe = unsubscribe = nothing


@pytest.fixture
def door():
    return Door()


@pytest.fixture
def process(tmp_path, door):
    """A run whose process dies: its settings are missing."""
    run = add(Runs(tmp_path / "runs"), "run")
    process = RunProcess(run, door, flower_home=tmp_path / "flower", wake=lambda: None)
    yield process
    process.close()
    assert door.boxes == []
    assert process.pid is None


def ticks(process):
    """Let time pass until the run is suspended; return how many processes it had."""
    pids = set()
    for number in range(1, 100):
        if process.tick(100.0 * number) == "suspended":
            return len(pids)
        if process.pid is not None:
            pids.add(process.pid)
            process._process.wait(HANG_S)
    raise AssertionError("it is never suspended")


def test_a_run_that_dies_by_itself_again_and_again_is_suspended_and_says_why(process):
    assert ticks(process) == DEATHS_TO_SUSPEND
    reason = process.run.suspended().reason
    assert "FileNotFoundError" in reason
    assert "settings.json" in reason
    assert "runs/run/serverapp.log" in reason
    assert "FileNotFoundError" in (process.run.folder / LAST_GASP).read_text()


def test_what_its_log_ends_with_is_told(process, monkeypatch):
    (process.run.folder / "serverapp.log").write_text("begins\nERROR OSError: the disk is full\n")
    monkeypatch.setattr(run_process, "MODULE", "this")  # it says nothing and ends
    ticks(process)
    assert "(last: ERROR OSError: the disk is full)" in process.run.suspended().reason


def silent_processes(folder, monkeypatch):
    """Let every run's process live, and say nothing."""
    (folder / "mute.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
    monkeypatch.setattr(run_process, "MODULE", "mute")


@pytest.fixture
def frozen(process, monkeypatch, tmp_path):
    """The same run; its process never says hello."""
    silent_processes(tmp_path, monkeypatch)
    return process


def test_a_process_that_never_says_hello_is_killed_and_another_started(frozen):
    now = time.monotonic()
    frozen.tick(now)
    first = frozen.pid
    assert first is not None
    frozen.tick(now + 30)
    assert frozen.pid == first
    frozen.tick(now + 61)
    assert frozen._process.wait(HANG_S) == -signal.SIGKILL
    frozen.tick(now + 62)
    assert frozen.pid not in (None, first)


def test_the_one_who_ticks_is_woken_when_the_process_ends(tmp_path, door):
    woken = []
    run = add(Runs(tmp_path / "runs"), "run")
    process = RunProcess(run, door, flower_home=tmp_path, wake=lambda: woken.append(process.pid))
    process.tick(1.0)
    pid = process.pid
    until(lambda: woken == [pid])
    process.close()


def test_a_run_that_loses_its_place_has_no_process_left(frozen):
    frozen.tick(1.0)
    pid = frozen.pid
    frozen.close()
    assert not Path(f"/proc/{pid}").exists()


def test_what_a_strategy_started_ends_with_the_process(process, monkeypatch, tmp_path):
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"Path({str(tmp_path / 'child.part')!r}).write_text(str(child.pid))\n"
        f"Path({str(tmp_path / 'child.part')!r}).rename({str(tmp_path / 'child')!r})\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(run_process, "MODULE", "parent")
    process.tick(1.0)
    until((tmp_path / "child").exists)
    child = psutil.Process(int((tmp_path / "child").read_text()))
    os.kill(process.pid, signal.SIGKILL)
    until(lambda: process.tick(2.0) == "going" and not lives(child))


def test_what_a_strategy_prints_fills_no_disk_and_what_ends_it_is_said(tmp_path):
    code = (
        "import os, subprocess, sys\n"
        "from fedfactory.coordinator.running import process, serverapp\n"
        "from fedfactory.coordinator.run_settings import RunSettings\n"
        "def serve(daemon, settings):\n"
        "    os.write(2, b'x' * 1000000)\n"
        "    print('y' * 1000000, file=sys.__stderr__, flush=True)\n"
        "    subprocess.run('head -c 1000000 /dev/zero >&2', shell=True)\n"
        "    raise OSError('the end')\n"
        "serverapp.serve, RunSettings.read = serve, lambda path: None\n"
        "process.main()\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [str(theirs.fileno()), str(tmp_path / "settings.json"), str(os.getpid())]
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            check=False,
            timeout=HANG_S,
        )
    assert done.returncode == 1
    assert len(done.stderr) < 10_000
    assert done.stderr.endswith(b"OSError: the end\n")


def test_since_when_a_stop_goes_unheard(frozen):
    frozen.tick(100.0)
    frozen.run.wish_stop(StopWish(reason="asked by ana", after_round=True))
    frozen.tick(110.0)
    assert frozen._seen(110.0).unheard_since is None
    frozen.run.wish_stop(StopWish(reason="asked by ana", after_round=False))
    frozen.tick(120.0)
    assert frozen._seen(125.0).unheard_since == 120.0
    told = StopRequested(at=1.0, reason="asked by ana", after_round=False)
    with Journal.open(frozen.run.folder / JOURNAL) as journal:
        journal.append([told])
    assert frozen._seen(130.0).unheard_since is None
