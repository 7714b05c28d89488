"""Whether each cell of the registry says what its column may say: nobody is judged by less."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.revocations import SignedRevocation
from fedfactory.identity.roles import Peer, Role

TABLES: Final = (
    "invitations", "members", "certificates", "former_keys", "revocations", "operator_revocations",
)  # fmt: skip
_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")


def _is_name(value: Any) -> bool:
    try:
        Peer(role=Role.SITE, name=value)
    except FedfactoryError:
        return False
    return True


def _is_mark(value: Any) -> bool:
    return _FINGERPRINT.fullmatch(value) is not None


def _is_revocation(value: Any) -> bool:
    try:
        from_json(SignedRevocation, value)
    except FedfactoryError:
        return False
    return True


def _is_time(value: Any) -> bool:
    return math.isfinite(value) and value >= 0


_MARK: Final = (_is_mark, "a key's fingerprint (sha256:<64 hex digits>)")
_TIME: Final = (_is_time, "a time in Unix seconds")
# By column: the same name means the same in every table. Types and NULL are SQLite's to check.
_EXPECTED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "role": (lambda value: value in list(Role), f"one of {', '.join(Role)}"),
    "name": (_is_name, "a member's name"),
    "fingerprint": _MARK,
    "used_by": _MARK,
    "signed": (_is_revocation, "a signed revocation (JSON)"),
    **dict.fromkeys(
        ("invited_at", "expires_at", "enrolled_at", "valid_until", "seen_at", "not_after",
         "issued_at", "ended_at", "revoked_at"),
        _TIME,
    ),
}  # fmt: skip


def wrong_cell(database: sqlite3.Connection) -> str | None:
    """Return where a cell does not hold what it must, and what that is; never what it holds."""
    for table in TABLES:
        rows = database.execute(f"SELECT rowid, * FROM {table}")  # noqa: S608 - our own name
        columns = [described[0] for described in rows.description]
        for number, *cells in rows:
            for column, cell in zip(columns[1:], cells, strict=True):
                if (expected := _fault(column, cell)) is not None:
                    return f"table {table}, row {number}, {column}: expected {expected}"
    return None


def _fault(column: str, value: Any) -> str | None:
    """Return what was expected of a cell; None if it holds that. Undecodable bytes are escaped."""
    if isinstance(value, str) and not value.isascii() and not _is_text(value):
        return "text in UTF-8"
    holds, expected = _EXPECTED.get(column, (lambda _: True, ""))
    return None if value is None or holds(value) else expected


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
