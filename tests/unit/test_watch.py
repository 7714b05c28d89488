"""The administrator's word reaches a running agent within a second, and what it runs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfactory.tasks.table import load_task
from fedfactory.testing.executors import DATA, LONG_EPOCHS, job_of
from site_agents import control, watch
from site_agents.control import ControlName
from site_agents.executors.executor import WorkStoppedError
from site_agents.executors.local import LocalExecutor
from site_agents.watch import Watch
from tests.patience import HANG_S, prompt


class Bench:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.draining = threading.Event()
        self.decided = threading.Event()
        self.executor = LocalExecutor(
            site="cesga", sources=lambda: DATA, threads=1, devices=["cpu"], log=home / "worker.log"
        )
        self.watch = Watch(home, self.executor, draining=self.draining, decided=self.decided.set)
        self.watch.start()

    def say(self, word: ControlName) -> None:
        control.set(self.home, word, by="ana", reason="a test")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.watch.close()
    bench.executor.close()


def test_killing_ends_a_running_job_within_a_second(bench: Bench):
    base = bench.home / "base"
    load_task("digits").write_initial({"model": "mlp"}, 1, base)
    bench.executor.run(job_of(base), bench.home / "0", 120)
    ended = threading.Event()

    def work() -> None:
        with pytest.raises(WorkStoppedError):
            bench.executor.run(job_of(base, epochs=LONG_EPOCHS), bench.home / "1", 120)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    assert not ended.is_set()
    with prompt(1.0):
        bench.say("killed")
        assert ended.wait(HANG_S)
    thread.join()


def test_a_job_that_slips_in_after_the_word_is_ended_too(bench: Bench):
    base = bench.home / "base"
    load_task("digits").write_initial({"model": "mlp"}, 1, base)
    bench.executor.run(job_of(base), bench.home / "0", 120)
    bench.say("killed")
    assert bench.decided.wait(HANG_S)
    with prompt(2.0), pytest.raises(WorkStoppedError):
        bench.executor.run(job_of(base, epochs=LONG_EPOCHS), bench.home / "1", 120)


def test_draining_lets_the_agent_end(bench: Bench):
    bench.say("paused")
    assert bench.decided.wait(HANG_S)
    assert not bench.draining.is_set()
    bench.say("draining")
    assert bench.draining.wait(HANG_S)


def test_a_decision_wakes_the_agent_and_a_request_does_not(bench: Bench):
    folder = bench.home / "control" / "approvals"
    folder.mkdir(parents=True)
    (folder / "w.request.json").write_text("{}")
    assert not bench.decided.wait(3 * watch.LOOK_S)
    (folder / "w.decision.json").write_text("{}")
    assert bench.decided.wait(HANG_S)


def test_the_watchdog_hears_an_agent_that_moves_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(watch, "LOOK_S", 0.02)
    monkeypatch.setattr(watch, "LONGEST_STILL_S", 0.3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("/proc/self/cwd/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.getsockname())
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        bench = Bench(tmp_path)
        systemd.settimeout(HANG_S)
        assert systemd.recv(100) == b"WATCHDOG=1"
        time.sleep(0.5)  # it has not moved
        systemd.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while systemd.recv(100):
                pass
        time.sleep(0.2)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
        bench.watch.moves()
        systemd.settimeout(HANG_S)
        assert systemd.recv(100) == b"WATCHDOG=1"
        bench.watch.close()
