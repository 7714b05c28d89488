"""A run's journal: durable commits, one writer, damage told with what to do."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap

import pytest

from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError
from fedfactory.coordinator.running.journal import Journal, read_events
from fedfactory.rounds.events import DeadlinePassed, OrdersSent, SiteConnected, SiteLost
from fedfactory.rounds.log import decode_event
from tests.patience import HANG_S

CAME = SiteConnected(at=1.0, site="cesga")
WENT = SiteLost(at=2.0, site="cesga")
SENT = OrdersSent(at=3.0, round=1, kind="train", sites=("cesga", "lumi"))
PASSED = DeadlinePassed(at=4.0, round=1, kind="train")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.sqlite"


def written(path, *commits):
    with Journal.open(path) as journal:
        for commit in commits:
            journal.append(commit)
    return path


def told(path, after=0):
    return [decode_event(line) for _, line in read_events(path, after)]


def test_what_was_appended_is_there_again_in_order(path):
    written(path, [CAME, SENT], [PASSED])
    with Journal.open(path) as journal:
        assert journal.events() == [CAME, SENT, PASSED]
        assert len(journal) == 3
        journal.append([WENT])
        assert journal.events()[-1] == WENT
    assert told(path) == [(0, CAME), (1, SENT), (2, PASSED), (3, WENT)]


def test_a_reader_sees_each_commit_while_the_journal_is_written(path):
    assert read_events(path) == []
    with Journal.open(path) as journal:
        assert read_events(path) == []
        journal.append([CAME, SENT])
        assert told(path) == [(0, CAME), (1, SENT)]
        journal.append([PASSED])
        assert told(path, after=2) == [(2, PASSED)]
        assert told(path, after=3) == []


def test_a_file_that_was_only_begun_is_empty(path):
    path.touch()
    assert read_events(path) == []
    with Journal.open(path) as journal:
        assert journal.events() == []


def test_it_is_the_owners_alone(path):
    written(path, [CAME])
    assert path.stat().st_mode & 0o077 == 0


def test_a_second_writer_is_refused_at_once(path):
    with Journal.open(path), pytest.raises(EnvironmentFailedError, match="another process writes"):
        Journal.open(path)
    written(path, [CAME])  # and the first one's end lets the next one in


def test_a_writer_behind_the_lock_is_found_at_the_next_append(path):
    with Journal.open(path) as journal:
        journal.append([CAME])
        path.with_name("journal.sqlite.lock").unlink()
        with Journal.open(path) as other:
            other.append([WENT])
        with pytest.raises(EnvironmentFailedError, match="another process writes"):
            journal.append([SENT])
    assert told(path) == [(0, CAME), (1, WENT)]


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from fedfactory.coordinator.running.journal import Journal
    from fedfactory.rounds.events import SiteConnected
    journal = Journal.open(Path(sys.argv[1]))
    for number in range(20):
        journal.append([SiteConnected(at=float(number), site="a")] * 3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_appended_is_read_and_gone_on_with(path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)], check=False, timeout=HANG_S
    )
    assert done.returncode == -signal.SIGKILL
    assert path.with_name("journal.sqlite-wal").stat().st_size > 0  # nobody tidied up
    assert len(read_events(path)) == 60
    with Journal.open(path) as journal:
        assert len(journal) == 60
        journal.append([WENT])
    assert told(path, after=60) == [(60, WENT)]


def test_reading_leaves_a_killed_writers_files_alone(path, tmp_path):
    with Journal.open(path) as journal:
        journal.append([CAME])
        before = {found.name: found.read_bytes() for found in tmp_path.glob("*.sqlite*")}
        read_events(path)
        assert before["journal.sqlite"] == path.read_bytes()
        assert before["journal.sqlite-wal"] == (tmp_path / "journal.sqlite-wal").read_bytes()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda file: file.write_bytes(b"no database at all" * 300), "not a database"),
        (lambda file: os.truncate(file, 5000), "no whole journal"),
        (lambda file: _sql(file, "UPDATE events SET line = 'x' WHERE number = 1"), "event 1"),
        (lambda file: _sql(file, "UPDATE events SET number = 7 WHERE number = 1"), "numbered"),
        (lambda file: _sql(file, "DELETE FROM events WHERE number = 0"), "numbered"),
        (
            lambda file: _sql(
                file,
                "UPDATE events SET line = (SELECT line FROM events WHERE number = 0)"
                " WHERE number = 1",
            ),
            "event 1 says that it is 0",
        ),
    ],
)
def test_damage_is_told_with_what_to_do(path, damage, found):
    written(path, [CAME, SENT, PASSED])
    damage(path)
    with pytest.raises(IntegrityError, match=found) as told_so, Journal.open(path) as journal:
        journal.events()
    assert "put the file back from a backup" in told_so.value.public_message
    assert str(path) in told_so.value.public_message


def test_damage_is_told_to_readers(path):
    path.write_bytes(b"no database at all" * 300)
    with pytest.raises(IntegrityError, match="not a database"):
        read_events(path)


def test_a_full_disk_is_no_damage_and_loses_nothing_that_was_there(path):
    with Journal.open(path) as journal:
        journal.append([CAME])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        wal = path.with_name("journal.sqlite-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (wal, before[1]))
        try:
            with pytest.raises(EnvironmentFailedError, match="is the disk full"):
                journal.append([SENT])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, ignored)
        journal.append([PASSED])
        assert journal.events() == [CAME, PASSED]


def _sql(path, statement):
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


def test_a_child_of_the_writer_does_not_keep_the_next_one_out(tmp_path):
    """A strategy may fork: what it leaves behind lives on when the writer is killed."""
    reader, writer = os.pipe()
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from fedfactory.coordinator.running.journal import Journal\n"
        "journal = Journal.open(Path(sys.argv[1]))\n"
        "child = os.fork()\n"
        "if child == 0: time.sleep(600)\n"
        "os.write(int(sys.argv[2]), str(child).encode())\n"
        "os.kill(os.getpid(), 9)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "journal.sqlite"), str(writer)]
    subprocess.run(words, pass_fds=[writer], check=False, timeout=HANG_S)
    child = int(os.read(reader, 20))
    try:
        Journal.open(tmp_path / "journal.sqlite").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(reader)
        os.close(writer)
