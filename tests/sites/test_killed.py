"""kill -9 of the agent at every line that it runs between an order pulled and its update sent.

A child process (forked, nothing shared but the disk) answers one delivery and kills itself at the
n-th line of the site's code; then the site is opened anew, asked the same again, and held to what
may never be lost: budget spent, updates paid for, and that one work has one update.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest

from site_agents.executors.executor import WorkerLostError
from site_agents.jobs.job import RESULT, UPDATE
from site_agents.ledger import LedgerError
from tests.sites.rig import Coordinator, Site

WALKED = (
    "site_agents/pipeline.py", "site_agents/books.py", "site_agents/ledger.py",
    "site_agents/audit/", "site_agents/second_place.py", "site_agents/approvals.py",
    "fedfactory/durable_file.py", "site_agents/jobs/job.py", "fedfactory/privacy/budget.py",
    "tests/sites/rig.py",
)  # fmt: skip
STEPS = 16


def _walked(frame: FrameType) -> bool:
    return any(part in frame.f_code.co_filename for part in WALKED)


class _Lines:
    """Counts the lines run in WALKED, and kills this process at line `last`."""

    def __init__(self, last: int | None) -> None:
        self.count = 0
        self._last = last

    def __enter__(self) -> Self:
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._on_line if _walked(frame) else None

    def _on_line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._on_line


def _child(work: Callable[[], None]) -> int:
    """Run `work` in a forked process; return its wait status."""
    # A fork copies this thread alone. Dummies are gRPC's own, that once called Python.
    assert [t for t in threading.enumerate() if not t.name.startswith("Dummy-")] == [
        threading.main_thread()
    ]
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  the child must not go on as a second pytest
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


class Walk:
    """One prepared home, copied back before each death."""

    def __init__(self, folder: Path, **policy: Any) -> None:
        self.site = Site(folder, Coordinator(), **policy)
        self.site.ask(round=1)
        self.site.ask(round=1, kind="evaluate")
        self.site.close()
        self._folder = folder
        self._saved = folder.with_name("saved")
        shutil.copytree(folder, self._saved)
        late = time.time() + 3600
        self.text = self.site.delivery(round=2, expires_at=late)
        self.again = self.site.delivery(round=2, expires_at=late)

    def reset(self) -> None:
        """Put every file back in place: the ledger must stay the same file."""
        for path in sorted(self._folder.rglob("*"), reverse=True):
            twin = self._saved / path.relative_to(self._folder)
            if path.is_file() and not twin.exists():
                path.unlink()
            elif path.is_dir() and not twin.exists():
                shutil.rmtree(path)
        for path in self._saved.rglob("*"):
            twin = self._folder / path.relative_to(self._saved)
            if path.is_dir():
                twin.mkdir(exist_ok=True)
            else:
                twin.write_bytes(path.read_bytes())

    def lines(self) -> int:
        """How many lines one answer takes."""
        self.reset()
        read, write = os.pipe()

        def count() -> None:
            self.site.open()
            with _Lines(None) as lines:
                self.site.answer(self.text)
            os.write(write, str(lines.count).encode())

        assert _child(count) == 0
        os.close(write)
        with os.fdopen(read) as result:
            return int(result.read())

    def die_at(self, line: int) -> None:
        """Answer, and be killed at a line."""
        self.reset()

        def die() -> None:
            self.site.open()
            with _Lines(line):
                self.site.answer(self.text)

        assert os.WTERMSIG(_child(die)) == signal.SIGKILL


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    folder = tmp_path / "site"
    folder.mkdir()
    return Walk(folder)


def _hold_to_account(walk: Walk, line: int) -> None:
    site = walk.site
    site.open()  # it opens: books that a kill could break would stop the site for good
    try:
        before = {p.name for p in walk._saved.joinpath("received").iterdir()}
        budget, accountant = site.books._ledger.budget, site.books._ledger.accountant
        executed = site.executions() - 2
        reserved = site.steps_spent() - STEPS - 1
        assert reserved in {0, STEPS}, line
        assert reserved >= STEPS * executed, f"line {line}: data was touched before it was paid for"
        epsilon = budget.epsilon_run(accountant, next(iter(budget.runs)))
        left = {p.name for p in site.received.iterdir()} - before
        paid = any(site.home.glob("spool/jobs/000002-train-*/result.json"))

        reply = site.answer(walk.again)
        assert reply.update is not None, line
        after = budget.epsilon_run(accountant, next(iter(budget.runs)))
        assert after >= epsilon
        digest = reply.update.payload.blob.digest.removeprefix("sha256:")
        sent = {p.name for p in site.received.iterdir()} - before
        assert left <= {digest}, f"line {line}: a second update for one work"
        assert sent == {digest}
        if paid:
            assert site.executions() - 2 == executed, (
                f"line {line}: work that was paid for was lost"
            )
        assert site.steps_spent() - STEPS - 1 >= STEPS * (site.executions() - 2)
        assert site.books.check(site.books.anchor()) is None
    finally:
        site.close()


@pytest.mark.parametrize("part", range(4))
@pytest.mark.rule("9")
def test_every_tenth_line(walk: Walk, part: int) -> None:
    total = walk.lines()
    assert total > 300
    for line in range(1 + part, total, 40):
        walk.die_at(line)
        _hold_to_account(walk, line)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_line(walk: Walk) -> None:
    for line in range(1, walk.lines()):
        walk.die_at(line)
        _hold_to_account(walk, line)


def test_killed_again_and_again(walk: Walk) -> None:
    """Ten deaths in a row on one order: each execution is charged, the answer comes in the end."""
    total = walk.lines()
    walk.reset()
    for number in range(10):

        def die(at: int = 1 + number * total // 10) -> None:
            walk.site.open()
            with _Lines(at):
                walk.site.answer(walk.text)

        _child(die)
    site = walk.site
    site.open()
    reply = site.answer(walk.again)
    assert reply.update is not None
    assert site.steps_spent() - STEPS - 1 >= STEPS * (site.executions() - 2)
    site.close()


def test_a_worker_killed_twice_is_charged_twice(walk: Walk) -> None:
    walk.reset()
    site = walk.site
    site.open()

    def fault(job: object) -> None:
        raise WorkerLostError("killed")

    site.executor.fault = fault
    reply = site.answer(walk.text)
    assert reply.refusal.code == "work_failed"
    assert site.steps_spent() == STEPS + 1 + 2 * STEPS
    site.executor.fault = lambda job: None
    assert site.answer(walk.again).update is not None
    assert site.steps_spent() == STEPS + 1 + 3 * STEPS
    site.close()


@pytest.mark.parametrize("file", [RESULT, UPDATE])
def test_what_a_power_failure_left_torn_is_done_anew(
    walk: Walk, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk.reset()
    site = walk.site
    site.open()

    def lose_power(*work: object) -> None:
        raise LedgerError("the power failed")

    with monkeypatch.context() as patch:
        patch.setattr(site.books, "commit", lose_power)
        assert site.answer(walk.text).refusal.code == "books_broken"
    site.close()
    (left,) = site.home.glob(f"spool/jobs/000002-train-*/{file}")
    left.write_bytes(left.read_bytes()[:-10])
    site.open()
    assert site.answer(walk.again).update is not None
    assert site.executions() == 2 + 2
    assert site.steps_spent() == STEPS + 1 + 2 * STEPS
    site.close()
