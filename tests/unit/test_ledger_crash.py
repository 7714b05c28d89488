"""kill -9 of whoever writes the ledger, at random and at each statement: epsilon never falls.

Real processes, really killed. What was acknowledged is there after the restart; what was not is
there whole or not at all.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ledger_parts import LINEAGE, admitted, charge, epsilon, make, update, work

from site_agents.ledger import Ledger, LedgerError
from site_agents.ledger_head import HeadFile

HERE = Path(__file__).parent

LOOP = f"""
    import sys
    sys.path.insert(0, {str(HERE)!r})
    from pathlib import Path
    from ledger_parts import *
    ledger = Ledger.open(Path(sys.argv[1]))
    def said(what, run, number):
        print(what, run, number, ledger.sequence, ledger.head, flush=True)
    first = len(ledger.budget.runs)
    for number in range(first, first + 1000):
        run = f"run-{{number}}"
        ledger.admit(admitted(run, steps=4))
        said("admitted", run, 0)
        for turn in range(1, 5):
            key = work(turn, run=run)
            ledger.reserve(key, LINEAGE, charge())
            said("reserved", run, turn)
            if turn == 2:
                ledger.refund(key)
                said("refunded", run, turn)
                ledger.reserve(key, LINEAGE, charge())
                said("reserved", run, turn)
            ledger.commit(key, update(key))
            said("committed", run, turn)
"""


def spent(ledger):
    return sum(ledger.budget.spendings[LINEAGE].values())


def test_killed_at_random(tmp_path):
    make(tmp_path)
    chance = random.Random(20261121)
    standing = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(LOOP), tmp_path],
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = [process.stdout.readline()]  # it has begun
        time.sleep(chance.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        said = [line.split() for line in (lines[0] + rest).splitlines() if line.count(" ") == 4]
        assert said, "nothing was acknowledged"
        ledger = Ledger.open(tmp_path)
        *_, sequence, head = said[-1]
        assert ledger.sequence in (int(sequence), int(sequence) + 1), "at most one not acknowledged"
        assert ledger.head_at(int(sequence)) == head
        for what, run, number, *_ in said:
            if what == "committed":
                key = work(int(number), run=run)
                assert ledger.finished(key) == update(key)
        kinds = [what for what, *_ in said]
        standing += kinds.count("reserved") - kinds.count("refunded")
        if ledger.sequence > int(sequence):
            newest = ledger.recent(1)[0].kind
            standing += {"WorkReserved": 1, "WorkRefunded": -1}.get(newest, 0)
        assert spent(ledger) == standing, "what was acknowledged is spent, to the step"
        ledger.close()


def killed_in_mid_loop(home):
    make(home)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOOP), home], stdout=subprocess.PIPE, text=True
    )
    for _ in range(9):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (home / "ledger.sqlite-wal").stat().st_size > 0


def test_the_log_that_a_killed_process_left_may_not_be_removed(tmp_path):
    killed_in_mid_loop(tmp_path)
    (tmp_path / "ledger.sqlite-wal").unlink()
    with pytest.raises(LedgerError, match=r"rolled back|cut short|not as they were made"):
        Ledger.open(tmp_path)


def test_the_log_that_a_killed_process_left_is_taken_in(tmp_path):
    killed_in_mid_loop(tmp_path)
    (tmp_path / "ledger.sqlite-shm").unlink()
    ledger = Ledger.open(tmp_path)
    assert ledger.sequence >= 10
    ledger.close()


# ---- at each step ------------------------------------------------------------------------------


class Deadly:
    """A connection that kills its process at one statement, before it runs or after."""

    def __init__(self, real, at, after):
        self.real, self.left, self.after = real, at, after

    def execute(self, *arguments):
        self.left -= 1
        if self.left == 0 and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = self.real.execute(*arguments)
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def __getattr__(self, name):
        return getattr(self.real, name)


def in_a_process_that_dies(home, act, *, at, after):
    """Do `act(ledger)` in a process killed at its statement `at`; return whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            ledger = Ledger.open(home)
            ledger._file._db = Deadly(ledger._file._db, at, after)
            act(ledger)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def admit(ledger):
    ledger.admit(admitted("run-2", steps=3))


def reserve(ledger):
    ledger.reserve(work(2), LINEAGE, charge())


def commit(ledger):
    ledger.commit(work(1), update(work(1)))


def refund(ledger):
    ledger.refund(work(1))


def measure(ledger):
    epsilon(ledger)


@pytest.mark.parametrize("act", [admit, reserve, commit, refund, measure])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_each_statement(tmp_path, act, after):
    kills = 0
    for at in range(1, 50):
        home = tmp_path / str(at)
        home.mkdir()
        make(home)
        ledger = Ledger.open(home)
        ledger.admit(admitted())
        ledger.reserve(work(1), LINEAGE, charge())
        sequence, spending = ledger.sequence, spent(ledger)
        ledger.close()
        killed = in_a_process_that_dies(home, act, at=at, after=after)
        kills += killed
        ledger = Ledger.open(home)
        assert ledger.sequence in (sequence, sequence + 1)
        if act is not refund:
            assert spent(ledger) >= spending
        done = ledger.sequence > sequence
        assert done or killed or act is measure
        if act is commit:
            assert ledger.finished(work(1)) == (update(work(1)) if done else None)
        if not done and act is not measure:
            act(ledger)  # it goes on from here
        if act is reserve:
            assert spent(ledger) == spending + 1
        ledger.close()
        if not killed:
            break
    assert kills >= 3
    assert not killed, "every statement was tried"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_the_head_file(tmp_path, moment):
    make(tmp_path)
    ledger = Ledger.open(tmp_path)
    ledger.admit(admitted())
    sequence = ledger.sequence
    ledger.close()
    pid = os.fork()
    if pid == 0:
        ledger = Ledger.open(tmp_path)
        real = HeadFile.write

        def write(self, told):
            if moment == "after":
                real(self, told)
            os.kill(os.getpid(), signal.SIGKILL)

        HeadFile.write = write
        try:
            ledger.reserve(work(1), LINEAGE, charge())
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    ledger = Ledger.open(tmp_path)
    assert ledger.sequence == sequence + 1, "it was durable before the head file was touched"
    assert spent(ledger) == 1
    ledger.close()
