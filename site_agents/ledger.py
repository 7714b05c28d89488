"""What the site began and finished, on disk: one row per unit of work, keyed by the order's key.

Work is reserved before data is touched and committed with its finished reply. Asked twice, finished
work is answered from here; a different order for the same (run, round, kind) is a conflict.
Without differential privacy nothing is charged; the privacy budget will live in this file.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.updates import Reply

_SCHEMA = """
CREATE TABLE IF NOT EXISTS work (
    coordinator TEXT NOT NULL,
    run_id TEXT NOT NULL,
    round INTEGER NOT NULL,
    kind TEXT NOT NULL,
    order_digest TEXT NOT NULL,
    reply TEXT,
    PRIMARY KEY (coordinator, run_id, round, kind)
) STRICT
"""


class WorkConflictError(Exception):
    """Another order for the same round was already begun."""


class WorkLedger:
    """The table of work, in an SQLite file on a local disk (WAL, synchronous=FULL)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute(_SCHEMA)

    def finished(self, key: WorkKey) -> Reply | None:
        """Return the finished reply to this very work, or None.

        Raises:
            WorkConflictError: another order for the same run, round and kind was begun.
        """
        row = self._db.execute(
            "SELECT order_digest, reply FROM work"
            " WHERE coordinator=? AND run_id=? AND round=? AND kind=?",
            (key.coordinator, key.run_id, key.round, key.kind),
        ).fetchone()
        if row is None:
            return None
        if row[0] != key.order_digest:
            raise WorkConflictError
        return from_json(Reply, row[1]) if row[1] else None

    def reserve(self, key: WorkKey) -> None:
        """Note, durably, that this work begins. Work begun before and lost may begin again."""
        self._db.execute(
            "INSERT OR IGNORE INTO work VALUES (?, ?, ?, ?, ?, NULL)",
            (key.coordinator, key.run_id, key.round, key.kind, key.order_digest),
        )

    def commit(self, key: WorkKey, reply: Reply) -> None:
        """Keep the finished reply, durably, before it is sent."""
        self._db.execute(
            "UPDATE work SET reply=? WHERE coordinator=? AND run_id=? AND round=? AND kind=?",
            (to_json(reply), key.coordinator, key.run_id, key.round, key.kind),
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()
