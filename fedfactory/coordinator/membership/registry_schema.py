"""The tables of the registry, and who may open them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, UsageError
from fedfactory.coordinator.membership.registry_check import wrong_cell

SCHEMA_VERSION: Final = 3
PUT_BACK: Final = (
    "put the last copy of the coordinator's home back, and look at it with `fedfactory consortium"
    " show`; until then nobody is admitted"
)
BUSY_S: Final = 20.0
# A member has one key for life; another name's key, or one that was cut off, is never taken again.
# `in_use` is the number of the newest certificate that the member was seen with.
_MEMBERS: Final = """
CREATE TABLE members (
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    fingerprint TEXT NOT NULL UNIQUE,
    version TEXT,
    enrolled_at REAL NOT NULL,
    valid_until REAL NOT NULL,
    in_use INTEGER,
    seen_at REAL,
    PRIMARY KEY (role, name)
) STRICT;
"""
_TABLES: Final = """
CREATE TABLE invitations (
    fingerprint TEXT PRIMARY KEY,
    number INTEGER NOT NULL,
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    invited_by TEXT NOT NULL,
    invited_at REAL NOT NULL,
    expires_at REAL NOT NULL,
    used_by TEXT,
    voided TEXT
) STRICT;
CREATE INDEX invitations_of ON invitations (role, name, number);
CREATE TABLE certificates (
    number INTEGER PRIMARY KEY,
    serial TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    not_after REAL NOT NULL,
    root TEXT NOT NULL,
    issued_at REAL NOT NULL
) STRICT;
CREATE INDEX certificates_of ON certificates (fingerprint);
CREATE TABLE former_keys (
    fingerprint TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    ended_at REAL NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE revocations (
    role TEXT NOT NULL,
    name TEXT NOT NULL,
    revoked_at REAL NOT NULL,
    revoked_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (role, name)
) STRICT;
"""
# Since version 2: what operators signed of other operators' keys (JSON), for the sites that pin
# them. `number` is the order in which sites are told.
_SINCE_2: Final = """
CREATE TABLE operator_revocations (
    number INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL UNIQUE,
    signed TEXT NOT NULL
) STRICT;
"""
# Since version 3 a member has no node key, which Flower's SuperLink asked for. SQLite drops no
# column that is unique.
_SINCE_3: Final = (
    "ALTER TABLE members RENAME TO members_2",
    _MEMBERS,
    """
INSERT INTO members
    SELECT role, name, fingerprint, version, enrolled_at, valid_until, in_use, seen_at
    FROM members_2;
DROP TABLE members_2;
DROP TABLE former_node_keys;
""",
)
# By the version that a file has, what makes it the present one.
_STEPS: Final[Mapping[int, tuple[str, ...]]] = {
    0: (_TABLES, _MEMBERS, _SINCE_2),
    1: (_SINCE_2, *_SINCE_3),
    2: _SINCE_3,
    SCHEMA_VERSION: (),
}


def open_database(path: Path) -> sqlite3.Connection:
    """Open the registry at `path`, or begin it; for any thread, under a lock of the caller's.

    Raises:
        UsageError: it is of another version, or no registry.
        EnvironmentFailedError: it cannot be opened or written.
    """
    try:
        if not path.exists():
            path.touch(mode=0o600)
        database = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            _begin_or_check(database, path)
            _check_whole(database)
            database.row_factory = sqlite3.Row
        except BaseException:
            database.close()
            raise
    except sqlite3.OperationalError as error:
        raise EnvironmentFailedError(
            f"the registry {path} cannot be opened", diagnostic=str(error)
        ) from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a damaged name is no text
        raise UsageError(f"{path} is damaged ({error}): {PUT_BACK}") from error
    except OSError as error:
        raise EnvironmentFailedError(
            f"the registry {path} cannot be written ({error.strerror})"
        ) from error
    return database


def _check_whole(database: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError if a page, an index or a cell of the file is damaged."""
    (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    database.text_factory = lambda told: told.decode("utf-8", "surrogateescape")
    if found := wrong_cell(database):
        raise sqlite3.DatabaseError(found)
    database.text_factory = str


def _begin_or_check(database: sqlite3.Connection, path: Path) -> None:
    database.execute("BEGIN IMMEDIATE")
    try:
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found in _STEPS:
            for script in _STEPS[found]:
                for statement in filter(str.strip, script.split(";\n")):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
    if found not in _STEPS:
        raise UsageError(
            f"{path} has format {found}, this version of fedfactory reads {SCHEMA_VERSION}: use"
            " the version that wrote it, or a newer one"
        )
