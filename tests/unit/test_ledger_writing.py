"""A ledger that cannot be written says why, spends nothing in secret, and goes on when it can."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from ledger_parts import LINEAGE, admitted, charge, epsilon, make, make_used, run_key, update, work

from fedfactory.contracts.codec import to_json
from site_agents import ledger as ledger_module
from site_agents import ledger_file
from site_agents.ledger import Ledger, LedgerError
from tests.patience import HANG_S

HERE = Path(__file__).parent
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def python(script, *words, wrap=()):
    """Start a Python process that may use what tests of ledgers use."""
    text = "import sys\n" + f"sys.path.insert(0, {str(HERE)!r})\n" + textwrap.dedent(script)
    return subprocess.Popen(
        [*wrap, sys.executable, "-c", text, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, errors
    return output


# ---- other processes ---------------------------------------------------------------------------

HOLDS = """
    import sqlite3
    database = sqlite3.connect(sys.argv[1], isolation_level=None)
    database.execute("BEGIN IMMEDIATE")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_locked_by_another_process(tmp_path, monkeypatch):
    make_used(tmp_path)
    monkeypatch.setattr(ledger_file, "LOCK_PATIENCE_S", 0.2)
    ledger = Ledger.open(tmp_path)
    spent, sequence = epsilon(ledger), ledger.sequence
    other = python(HOLDS, tmp_path / "ledger.sqlite")
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LedgerError, match="another process has held it"):
        ledger.reserve(work(4), LINEAGE, charge())
    assert (epsilon(ledger), ledger.sequence) == (spent, sequence)
    finish(other)
    ledger.reserve(work(4), LINEAGE, charge())
    assert epsilon(ledger) > spent
    ledger.close()


SPENDS = """
    from pathlib import Path
    from ledger_parts import *
    ledger = Ledger.open(Path(sys.argv[1]))
    ledger.reserve(work(90), LINEAGE, charge())
    print("spent", flush=True)
    sys.stdin.read()
    ledger.close()
"""


def test_one_process_spends_and_others_may_manage(tmp_path):
    make_used(tmp_path)
    agent = python(SPENDS, tmp_path)
    assert agent.stdout.readline() == "spent\n"
    person = Ledger.open(tmp_path)
    with pytest.raises(LedgerError, match="another agent spends"):
        person.reserve(work(4), LINEAGE, charge())
    with pytest.raises(LedgerError, match="another agent spends"):
        person.admit(admitted("run-2"))
    with pytest.raises(LedgerError, match="another agent spends"):
        Ledger.move(tmp_path, actor="ada", reason="too early")
    person.open_lineage("machines", 1e-5, actor="ada", reason="another population")
    person.release(run_key(), actor="ada", reason="the run is over")
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    agent.communicate()
    person.reserve(work(4), LINEAGE, charge())
    person.close()


def test_what_a_person_wrote_is_taken_in_before_the_next_entry(tmp_path):
    make_used(tmp_path)
    agent, person = Ledger.open(tmp_path), Ledger.open(tmp_path)
    agent.reserve(work(4), LINEAGE, charge())
    person.release(run_key(), actor="ada", reason="the run is over")
    agent.reserve(work(5), LINEAGE, charge())
    assert agent.budget.runs[run_key()].released
    agent.close()
    person.close()


def test_a_judgement_made_before_anothers_entry_is_made_again(tmp_path):
    make_used(tmp_path)
    agent, other = Ledger.open(tmp_path), Ledger.open(tmp_path)
    other.reserve(work(4), LINEAGE, charge())
    other.close()
    with pytest.raises(LedgerError, match="ask again"):
        agent.reserve(work(5), LINEAGE, charge())
    agent.reserve(work(5), LINEAGE, charge())
    agent.close()


def test_threads_side_by_side(tmp_path):
    make(tmp_path)
    ledger = Ledger.open(tmp_path)
    threads, rounds = 8, 6
    for number in range(threads):
        ledger.admit(admitted(f"run-{number}", steps=rounds))
    failures = []
    ends = []

    def play(run):
        try:
            for number in range(1, rounds + 1):
                key = work(number, run=run)
                ledger.reserve(key, LINEAGE, charge())
                epsilon(ledger, run)
                if number % 3 == 0:
                    ledger.refund(key)
                    ledger.reserve(key, LINEAGE, charge())
                ledger.commit(key, update(key))
                assert ledger.finished(key) == update(key)
                ends.append(ledger.end)
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    playing = [threading.Thread(target=play, args=(f"run-{n}",)) for n in range(threads)]
    for thread in playing:
        thread.start()
    for thread in playing:
        thread.join()
    assert failures == []
    assert ledger.budget.spendings[LINEAGE] == {charge().cost: threads * rounds}
    assert all(ledger.head_at(sequence) == head for sequence, head in ends)
    live = ledger.end
    ledger.close()
    ledger = Ledger.open(tmp_path)
    assert ledger.end == live
    ledger.close()


# ---- disks -------------------------------------------------------------------------------------

FULL = """
    import os, subprocess
    from pathlib import Path
    from ledger_parts import *
    from site_agents.ledger import LedgerError
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", disk], check=True)
    make_used(disk)
    ledger = Ledger.open(disk)
    spent, sequence = epsilon(ledger), ledger.sequence
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass
    failed = 0
    for number in range(4, 400):
        try:
            ledger.reserve(work(number), LINEAGE, charge())
            assert not failed, "it goes on only when there is room"
            spent, sequence = epsilon(ledger), ledger.sequence
        except LedgerError as error:
            said, failed = str(error), failed + 1
            assert (epsilon(ledger), ledger.sequence) == (spent, sequence)
            if failed == 3:
                break
    assert "disk is full" in said or "disk full" in said, said
    ballast.unlink()
    ledger.reserve(work(number), LINEAGE, charge())
    assert epsilon(ledger) > spent
    spent = epsilon(ledger)
    ledger.close()
    ledger = Ledger.open(disk)
    assert epsilon(ledger) == spent
    ledger.close()
    print("done")
"""

READ_ONLY = """
    import subprocess
    from pathlib import Path
    from ledger_parts import *
    from site_agents.ledger import LedgerError
    disk = Path(sys.argv[1])
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
    make_used(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for attempt in (lambda: Ledger.open(disk), lambda: make(disk / "new")):
        try:
            attempt()
        except LedgerError as error:
            print(error)
"""


def may_mount():
    try:
        done = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not may_mount(), reason="no user namespaces: no disk to fill")
def test_a_full_disk(tmp_path):
    assert finish(python(FULL, tmp_path, wrap=NAMESPACE)) == "done\n"


@pytest.mark.skipif(not may_mount(), reason="no user namespaces: no disk to make read-only")
def test_a_read_only_disk(tmp_path):
    said = finish(python(READ_ONLY, tmp_path, wrap=NAMESPACE)).splitlines()
    assert len(said) == 2
    assert all(str(tmp_path) in line for line in said)
    assert "Read-only file system" in said[0]
    assert not any("init" in line for line in said)  # nothing is lost: nobody makes a new one


LIMITED = """
    import resource
    from pathlib import Path
    from ledger_parts import *
    from site_agents.ledger import LedgerError
    home = Path(sys.argv[1])
    ledger = Ledger.open(home)
    spent, sequence = epsilon(ledger), ledger.sequence
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    size = (home / "ledger.sqlite-wal").stat().st_size if (home / "ledger.sqlite-wal").exists() else 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 2048) + 2048, most))
    for attempt in (
        lambda: ledger.reserve(work(4), LINEAGE, charge(steps=3)),
        lambda: ledger.commit(work(3), update(work(3))),
    ):
        try:
            attempt()
            raise SystemExit("it was written")
        except LedgerError as error:
            print(error)
        assert (epsilon(ledger), ledger.sequence) == (spent, sequence)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    ledger.reserve(work(4), LINEAGE, charge(steps=3))
    assert epsilon(ledger) > spent
    ledger.close()
"""


def test_a_limit_on_file_size(tmp_path):
    make(tmp_path)
    ledger = Ledger.open(tmp_path)
    ledger.admit(admitted())
    ledger.reserve(work(3), LINEAGE, charge())
    epsilon(ledger)
    ledger.close()
    said = finish(python(LIMITED, tmp_path)).splitlines()
    assert len(said) == 2
    assert all("cannot be written" in line and str(tmp_path) in line for line in said)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    make_used(tmp_path)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match="let the agent's user write"):
            Ledger.open(tmp_path).reserve(work(4), LINEAGE, charge())
    finally:
        tmp_path.chmod(0o700)


def test_a_head_file_that_cannot_be_written_leaves_the_entry_spent(tmp_path, monkeypatch):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    spent = epsilon(ledger)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger._file._head_file, "write", fail)
        with pytest.raises(LedgerError, match=r"ledger.head cannot be written"):
            ledger.reserve(work(4), LINEAGE, charge())
    assert epsilon(ledger) > spent
    spent = epsilon(ledger)
    ledger.close()
    ledger = Ledger.open(tmp_path)  # a head file that lags is no rollback
    assert epsilon(ledger) == spent
    ledger.close()


# ---- clocks ------------------------------------------------------------------------------------


def test_a_clock_that_jumped_back(tmp_path, monkeypatch):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    spent, sequence = epsilon(ledger), ledger.sequence
    real = time.time
    monkeypatch.setattr(ledger_module.time, "time", lambda: real() - 3600)
    with pytest.raises(LedgerError, match=r"the clock is 3[56].* s behind .*timedatectl"):
        ledger.reserve(work(4), LINEAGE, charge())
    assert (epsilon(ledger), ledger.sequence) == (spent, sequence)
    monkeypatch.setattr(ledger_module.time, "time", lambda: real() - 60)
    ledger.reserve(work(4), LINEAGE, charge())  # a little is no matter, and time never runs back
    newest = ledger.recent(2)
    assert newest[0].at == newest[1].at
    ledger.close()


def test_a_clock_that_had_been_ahead_is_set_right_by_a_person(tmp_path, monkeypatch):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.time, "time", lambda: real() + 1e9)
        ledger.reserve(work(4), LINEAGE, charge())
    spent = epsilon(ledger)
    with pytest.raises(LedgerError, match="site-agent ledger move"):
        ledger.reserve(work(5), LINEAGE, charge())
    ledger.close()
    Ledger.move(tmp_path, actor="ada", reason="the clock had been in 2058")
    ledger = Ledger.open(tmp_path)
    assert epsilon(ledger) == spent
    ledger.reserve(work(5), LINEAGE, charge())
    ledger.close()


def test_entries_that_an_older_version_wrote_are_read(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr(
            ledger_module,
            "to_json",
            lambda entry: to_json(entry).replace('"terms_digest":', '"plan_digest":'),
        )
        make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    with sqlite3.connect(tmp_path / ledger_file.FILE) as database:
        (body,) = database.execute("SELECT body FROM entry WHERE kind = 'RunAdmitted'").fetchone()
    assert '"plan_digest":"plan"' in body
    assert ledger.budget.runs[run_key()].terms_digest == "plan"
    ledger.reserve(work(50), LINEAGE, charge())
    ledger.close()
