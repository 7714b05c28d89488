"""A run's journal: every decision of its round machine, durable before it takes effect.

One SQLite file in the run's folder, one writer (the run's process), any number of readers. A row
is an event's number and its line (rounds/log.py). A commit holds what happened together: after a
crash the file holds whole commits, and the run replays from them.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError, ProtocolError
from fedfactory.rounds.events import Event
from fedfactory.rounds.log import decode_event, encode_event

JOURNAL: Final = "journal.sqlite"

_READ_TIMEOUT_S: Final = 10.0
_OUTSIDE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_TABLE: Final = "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, line TEXT NOT NULL)"


class Journal:
    """The writer's end. Numbers count from 0 without a gap."""

    def __init__(self, path: Path, database: sqlite3.Connection, lock: int, count: int) -> None:
        self._path = path
        self._database = database
        self._lock = lock
        self._count = count

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the journal at `path` for writing; one that is not there yet is begun (0600).

        Raises:
            EnvironmentFailedError: another process has it open for writing.
            IntegrityError: the file is no whole journal.
            OSError: the file cannot be opened or written.
        """
        lock = _lock(path)
        database: sqlite3.Connection | None = None
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            database = sqlite3.connect(path, isolation_level=None, timeout=_READ_TIMEOUT_S)
            with _told(path):
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=FULL")  # a commit is on disk when it returns
                database.execute(_TABLE)
                count = _checked_count(path, database)
            return cls(path, database, lock, count)
        except BaseException:
            if database is not None:
                database.close()
            _unlock(lock)
            raise

    def events(self) -> list[Event]:
        """Return all events, oldest first.

        Raises:
            IntegrityError: the file is damaged.
        """
        with _told(self._path):
            rows = self._database.execute("SELECT number, line FROM events ORDER BY number")
            return [_event(self._path, number, line) for number, line in rows]

    def append(self, events: Sequence[Event]) -> None:
        """Write events in one durable commit; when it returns they survive a power failure.

        Raises:
            EnvironmentFailedError: another process wrote meanwhile, or the disk takes no more
                (OSError's cases as SQLite tells them). Nothing of `events` was written.
            IntegrityError: the file is damaged.
        """
        rows = [
            (self._count + index, encode_event(self._count + index, event))
            for index, event in enumerate(events)
        ]
        with _told(self._path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._check_alone()
                self._database.executemany("INSERT INTO events VALUES (?, ?)", rows)
                self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back by itself after some errors
                    self._database.execute("ROLLBACK")
                raise
        self._count += len(rows)

    def _check_alone(self) -> None:
        """Check inside the transaction that nobody wrote since: the lock beside may be gone."""
        (count,) = self._database.execute(
            "SELECT coalesce(max(number) + 1, 0) FROM events"
        ).fetchone()
        if count != self._count:
            raise _second_writer(self._path)

    def __len__(self) -> int:
        """Return how many events there are."""
        return self._count

    def close(self) -> None:
        """Close the file; it can be opened again."""
        self._database.close()
        _unlock(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_events(path: Path, after: int = 0) -> list[tuple[int, str]]:
    """Return number and line of the events from number `after` on; [] if there is no journal yet.

    Changes nothing; any process of the same user may call it while the journal is written.

    Raises:
        IntegrityError: the file is no whole journal.
    """
    if not path.exists() or path.stat().st_size == 0:
        return []
    with _told(path):
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_READ_TIMEOUT_S)) as database:
            tables = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'")
            if tables.fetchone() == (0,):
                return []
            rows = database.execute(
                "SELECT number, line FROM events WHERE number >= ? ORDER BY number", (after,)
            )
            return [(int(number), str(line)) for number, line in rows]


def _lock(path: Path) -> int:
    """Hold the file beside the journal that says who writes it; freed with the process."""
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise _second_writer(path) from None
    _locks.add(handle)
    return handle


def _unlock(handle: int) -> None:
    _locks.discard(handle)
    os.close(handle)


def _let_go() -> None:
    """A forked child (a strategy may make one) writes no journal: it must not keep the lock."""
    for handle in _locks:
        os.close(handle)
    _locks.clear()


_locks: Final[set[int]] = set()
os.register_at_fork(after_in_child=_let_go)


def _second_writer(path: Path) -> EnvironmentFailedError:
    return EnvironmentFailedError(
        f"{path}: another process writes this run's journal; a run has one at a time,"
        " end the other one first"
    )


class _told:  # noqa: N801, used as a verb
    """Tells SQLite's errors in our terms: damage as IntegrityError, the rest as the environment."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, sqlite3.Error) and _is_outside(error):
            raise EnvironmentFailedError(
                f"{self._path}: {error}; is the disk full, or not this machine's own? (SQLite's"
                " log needs a local file system)"
            ) from error
        if isinstance(error, sqlite3.Error | UnicodeError):
            raise _damaged(self._path, str(error)) from error


def _is_outside(error: sqlite3.Error) -> bool:
    """Whether the machine failed rather than the file (extended codes end in the primary one)."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF in _OUTSIDE


def _damaged(path: Path, found: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is no whole journal ({found}); put the file back from a backup of the run's"
        " folder, or begin a new run from one of the models beside it (model=FILE)"
    )


def _checked_count(path: Path, database: sqlite3.Connection) -> int:
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _damaged(path, str(found))
    rows, first, last = database.execute(
        "SELECT count(*), coalesce(min(number), 0), coalesce(max(number) + 1, 0) FROM events"
    ).fetchone()
    if (first, last) != (0, rows):
        raise _damaged(path, f"{rows} events numbered {first} to {last - 1}")
    return int(rows)


def _event(path: Path, number: int, line: str) -> Event:
    try:
        written, event = decode_event(line)
    except ProtocolError as error:
        raise _damaged(path, f"event {number}: {error.public_message}") from error
    if written != number:
        raise _damaged(path, f"event {number} says that it is {written}")
    return event
