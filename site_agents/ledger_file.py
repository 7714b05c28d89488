"""The ledger's files: rows that are only ever appended, each bound to those before it.

ledger.sqlite holds the rows (WAL, synchronous=FULL), ledger.key the key of their HMACs, ledger.head
the newest row's number and head (ledger_head.py): a database that ends before it was cut short.
What rows mean is not known here.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.durable_file import create_durably, sync_folder
from fedfactory.privacy.accounting import Cost, Rdp
from site_agents.ledger_head import HEAD, HeadFile, Told
from site_agents.ledger_place import LINK, place

FILE: Final = "ledger.sqlite"
KEY: Final = "ledger.key"
START: Final = "sha256:" + "0" * 64
KEY_BYTES: Final = 32
LOCK_PATIENCE_S: Final = 5.0
LOST: Final = "the site takes no work: docs/privacy.md, 'When the ledger does not hold'"

_SCHEMA: Final = """
CREATE TABLE entry (
    sequence INTEGER PRIMARY KEY,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    body TEXT NOT NULL,
    head TEXT NOT NULL
) STRICT;
CREATE TABLE divergence (
    noise_multiplier REAL NOT NULL,
    sample_rate REAL NOT NULL,
    rdp BLOB NOT NULL,
    mac BLOB NOT NULL,
    PRIMARY KEY (noise_multiplier, sample_rate)
) STRICT;
"""
_WHAT_TO_DO: Final = {
    sqlite3.SQLITE_BUSY: f"another process has held it for more than {LOCK_PATIENCE_S:g} s",
    sqlite3.SQLITE_FULL: "the disk is full: make room",
    sqlite3.SQLITE_IOERR: "is the disk full, or a limit on file size reached?",
    sqlite3.SQLITE_READONLY: "let the agent's user write the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "let the agent's user write the file and its folder",
    sqlite3.SQLITE_CORRUPT: f"it is damaged; {LOST}",
    sqlite3.SQLITE_NOTADB: f"it is damaged; {LOST}",
    sqlite3.SQLITE_ERROR: f"its tables are not as they were made; {LOST}",
}


class LedgerError(FedfactoryError):
    """The site's ledger does not hold, or cannot be written: the site takes no work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row as it lies on disk; `at` is Unix seconds, `head` binds it to all rows before."""

    sequence: int
    at: float
    kind: str
    body: str
    head: str


class LedgerFile:
    """The open files of one ledger. Its caller lets one thread in at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        with ExitStack() as opened:
            try:
                self.place = place(self.path)
                size = self.path.stat().st_size
                self._key_file = os.open(folder / KEY, os.O_RDONLY)
                opened.callback(os.close, self._key_file)
                self._key = os.read(self._key_file, KEY_BYTES + 1)
                self._head_file = opened.enter_context(closing(HeadFile(folder)))
            except FileNotFoundError as error:
                raise LedgerError(
                    f"{error.filename} is missing: only 'site-agent init' makes a ledger; if this"
                    f" site had one, {LOST}"
                ) from error
            except OSError as error:
                # Nothing of it is lost: no word here of making another.
                raise LedgerError(
                    f"{error.filename} cannot be opened ({error.strerror}): let the agent's user"
                    " write the ledger's files and their folder"
                ) from error
            if self.place == LINK:
                raise LedgerError(
                    f"{self.path} is a link or has a second name: a ledger has one place"
                )
            if len(self._key) != KEY_BYTES or size == 0:
                raise LedgerError(f"{self.path} or its key is cut short; {LOST}")
            try:
                self._db = opened.enter_context(closing(_connect(self.path)))
            except sqlite3.Error as error:
                raise self._failed("opened", error) from error
            self._opened = opened.pop_all()

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make the files of a new ledger, without rows.

        Raises:
            LedgerError: there is one already, or the folder cannot be written.
        """
        if any(os.path.lexists(folder / name) for name in (FILE, KEY, HEAD)):
            raise LedgerError(f"{folder / FILE} exists already: a site has one ledger for good")
        try:
            for name, content in ((KEY, secrets.token_bytes(KEY_BYTES)), (FILE, b"")):
                create_durably(folder / name, content)
            database = _connect(folder / FILE)
            database.executescript(_SCHEMA)
            database.close()
            HeadFile.create(folder, Told(sequence=0, head=START))
            sync_folder(folder)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{folder}: no ledger can be written here ({error})") from error
        return cls(folder)

    def close(self) -> None:
        """Close the files, and let others spend."""
        self._opened.close()

    # ---- reading -------------------------------------------------------------------------------

    def rows(self, after: int, head: str, *, at_most: int = -1) -> Iterator[Row]:
        """Yield the rows after row `after`, whose head is `head`, each verified.

        `at_most` bounds their number (-1: all).

        Raises:
            LedgerError: a row is missing or altered, or the file is no longer the one opened.
        """
        try:
            if place(self.path) != self.place:
                raise LedgerError(f"{self.path} was replaced while it was in use; {LOST}")
            found = self._db.execute(
                "SELECT sequence, at, kind, body, head FROM entry WHERE sequence >= ?"
                " ORDER BY sequence LIMIT ?",
                (max(1, after), at_most if at_most < 0 or not after else at_most + 1),
            ).fetchall()
        except OSError as error:
            raise LedgerError(f"{self.path} was removed while it was in use; {LOST}") from error
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        if after and (not found or (found[0][0], found[0][4]) != (after, head)):
            raise LedgerError(
                f"{self.path}: entry {after} was altered or cut off while it was in use; {LOST}"
            )
        for sequence, at, kind, body, its_head in found[1 if after else 0 :]:
            row = Row(sequence=sequence, at=at, kind=kind, body=body, head=its_head)
            if sequence != after + 1 or its_head != self._bound(after + 1, head, at, kind, body):
                raise LedgerError(f"{self.path}: entry {after + 1} is missing or altered; {LOST}")
            yield row
            after, head = sequence, its_head

    def row(self, sequence: int) -> Row:
        """Return one row, verified against the head before it.

        Raises:
            LedgerError: it is missing or altered.
        """
        before = self.head_at(sequence - 1)
        found = next(self.rows(sequence - 1, before, at_most=1), None) if before else None
        if found is None:
            raise LedgerError(f"{self.path}: entry {sequence} is missing; {LOST}")
        return found

    def head_at(self, sequence: int) -> str | None:
        """Return the head after row `sequence` (0: before the first), None if there is none."""
        if sequence == 0:
            return START
        try:
            found = self._db.execute(
                "SELECT head FROM entry WHERE sequence = ?", (sequence,)
            ).fetchone()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        return str(found[0]) if found else None

    def check_told(self) -> None:
        """Hold the rows against the head file.

        Raises:
            LedgerError: the rows end before it, or it is missing.
        """
        told = self._head_file.read()
        if told is None:
            raise LedgerError(f"{self._head_file.path} is damaged; {LOST}")
        if told.sequence < 1 or self.head_at(told.sequence) != told.head:
            raise LedgerError(
                f"{self.path} was seen at entry {told.sequence} and does not hold that entry now:"
                f" it was rolled back or cut short; {LOST}"
            )

    # ---- writing -------------------------------------------------------------------------------

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep every other writer out; what is not inserted by the end did not happen.

        Raises:
            LedgerError: another process holds it, or it cannot be written.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._failed("written", error) from error

    def hold_alone(self) -> None:
        """Be the one process that spends from this ledger, until it is closed.

        Raises:
            LedgerError: another process is.
        """
        try:
            fcntl.flock(self._key_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LedgerError(
                f"another agent spends from {self.path}: stop it first (site-agent status)"
            ) from error

    def insert(self, *, after: int, head: str, at: float, kind: str, body: str) -> Row:
        """Write the row after row `after`, durably; within `writing`."""
        bound = self._bound(after + 1, head, at, kind, body)
        self._db.execute(
            "INSERT INTO entry VALUES (?, ?, ?, ?, ?)", (after + 1, at, kind, body, bound)
        )
        self._db.execute("COMMIT")
        return Row(sequence=after + 1, at=at, kind=kind, body=body, head=bound)

    def tell(self, row: Row) -> None:
        """Write the head file.

        Raises:
            LedgerError: it cannot be written; the row is on disk all the same.
        """
        try:
            self._head_file.write(Told(sequence=row.sequence, head=row.head))
        except OSError as error:
            raise LedgerError(
                f"{self._head_file.path} cannot be written ({error.strerror}): make room, or let"
                " the agent's user write there"
            ) from error

    # ---- vectors that are dear to compute ------------------------------------------------------

    def recall(self, basis: str, cost: Cost) -> Rdp | None:
        """Return the vector kept for a cost on this basis, None if there is none to be trusted."""
        try:
            found = self._db.execute(
                "SELECT rdp, mac FROM divergence WHERE noise_multiplier = ? AND sample_rate = ?",
                (cost.noise_multiplier, cost.sample_rate),
            ).fetchone()
        except sqlite3.Error as error:
            raise self._failed("read", error) from error
        if found is None or not hmac.compare_digest(found[1], self._mac(basis, cost, found[0])):
            return None
        return struct.unpack(f"<{len(found[0]) // 8}d", found[0])

    def keep(self, basis: str, cost: Cost, rdp: Rdp) -> None:
        """Keep a vector."""
        packed = struct.pack(f"<{len(rdp)}d", *rdp)
        values = (cost.noise_multiplier, cost.sample_rate, packed, self._mac(basis, cost, packed))
        with self.writing():
            self._db.execute("INSERT OR REPLACE INTO divergence VALUES (?, ?, ?, ?)", values)
            self._db.execute("COMMIT")

    # ---- within --------------------------------------------------------------------------------

    def _bound(self, sequence: int, before: str, at: float, kind: str, body: str) -> str:
        message = f"{before}\n{sequence}\n{at!r}\n{kind}\n{body}".encode()
        return "sha256:" + hmac.new(self._key, message, hashlib.sha256).hexdigest()

    def _mac(self, basis: str, cost: Cost, packed: bytes) -> bytes:
        text = f"{basis}\n{cost.noise_multiplier!r}\n{cost.sample_rate!r}\n".encode()
        return hmac.new(self._key, text + packed, hashlib.sha256).digest()

    def _failed(self, what: str, error: sqlite3.Error) -> LedgerError:
        primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = _WHAT_TO_DO.get(primary, LOST)
        return LedgerError(f"{self.path} cannot be {what} ({error}): {advice}")


def _connect(path: Path) -> sqlite3.Connection:
    """Connect to a database that is there; its first page says that it is in WAL mode."""
    database = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=LOCK_PATIENCE_S,
        check_same_thread=False,
    )
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
    except sqlite3.Error:
        database.close()
        raise
    return database
