"""What left the site, written down before it leaves: one JSON line each, chained by hash.

Each line holds the SHA-256 of the line before, so an edit or deletion breaks the chain from there
on (`verify`). The file is only ever appended to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import IntegrityError

START: Final = "sha256:" + "0" * 64


class AuditChain:
    """The chain in one file. Opening it verifies it.

    Raises:
        IntegrityError: a line was altered, removed or cut short; the line is named.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._head = verify(path.read_text().splitlines()) if path.exists() else START
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def append(self, entry: Mapping[str, Any]) -> str:
        """Write one entry durably; return the new head of the chain."""
        line = json.dumps({**entry, "previous": self._head}, sort_keys=True, allow_nan=False)
        os.write(self._file, line.encode() + b"\n")
        os.fsync(self._file)
        self._head = _digest(line)
        return self._head

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def verify(lines: Iterable[str]) -> str:
    """Follow the chain; return its head.

    Raises:
        IntegrityError: the first line that does not follow from the one before.
    """
    head = START
    for number, line in enumerate(lines, start=1):
        try:
            previous = json.loads(line)["previous"]
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"audit line {number} is not a whole entry") from error
        if previous != head:
            raise IntegrityError(f"audit line {number} does not follow from line {number - 1}")
        head = _digest(line)
    return head


def _digest(line: str) -> str:
    return "sha256:" + hashlib.sha256(line.encode()).hexdigest()
