"""What a site's own record says of one run, as an operator may read it: outcomes, never a text.

Ledger and audit chain hold it already: when work began and how long it took, what left, and which
codes. Nothing is told that did not leave before, but the moments; those are whole seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.questions import LogLine
from fedfactory.privacy.entries import RunKey, WorkCommitted, WorkReserved
from site_agents.audit.reading import read
from site_agents.books import Books
from site_agents.ledger_file import Row

MOST_LINES: Final = 500
# Of a ledger that is longer, the newest: about a second's reading.
MOST_ROWS: Final = 50_000
Work = tuple[int, WorkKind]


def lines_of(home: Path, books: Books, run: RunKey) -> tuple[LogLine, ...]:
    """Return the newest lines about a run, oldest first.

    Raises:
        LedgerError, IntegrityError: the books no longer hold.
    """
    entries: list[tuple[float, Mapping[str, Any]]] = []
    read(home / "audit", lambda line: entries.append((_seconds(line.at), line.fields())))
    return told(books.rows(MOST_ROWS), entries, run)


def told(
    rows: Iterable[Row], entries: Iterable[tuple[float, Mapping[str, Any]]], run: RunKey
) -> tuple[LogLine, ...]:
    """Return the lines that a ledger's rows and an audit chain's entries make. Pure.

    Of work that was begun several times only the first time is told: that a worker died on private
    data, and how often, may follow from a record.
    """
    begun, took = _ledger_says(rows, run)
    found = [(at, _line(at, work, "begun", None)) for work, at in begun.items()]
    found += _audit_says(entries, run, took)
    found.sort(key=lambda one: one[0])  # by the exact moment, which itself stays here
    return tuple(line for _, line in found[-MOST_LINES:])


def _ledger_says(rows: Iterable[Row], run: RunKey) -> tuple[dict[Work, float], dict[Work, float]]:
    """Return when each piece of a run's work began, and how many seconds it took."""
    begun: dict[Work, float] = {}
    took: dict[Work, float] = {}
    for row in rows:
        if row.kind == "WorkReserved":
            work = from_json(WorkReserved, row.body).work
            if (work.coordinator, work.run_id) == (run.coordinator, run.run_id):
                begun.setdefault((work.round, work.kind), row.at)
        elif row.kind == "WorkCommitted":
            done = from_json(WorkCommitted, row.body)
            if (done.work.coordinator, done.work.run_id) == (run.coordinator, run.run_id):
                took[done.work.round, done.work.kind] = done.update.seconds
    return begun, took


def _audit_says(
    entries: Iterable[tuple[float, Mapping[str, Any]]], run: RunKey, took: Mapping[Work, float]
) -> Iterator[tuple[float, LogLine]]:
    for at, entry in entries:
        if (entry.get("coordinator"), entry.get("run")) != (run.coordinator, run.run_id):
            continue
        if entry["event"] == "released":
            work = (entry["round"], entry["kind"])
            yield at, _line(at, work, "update", took.get(work))
        elif entry["event"] == "refused":
            yield at, _line(at, (entry["round"], entry["kind"]), entry["code"], None)


def _line(at: float, work: Work, outcome: str, seconds: float | None) -> LogLine:
    return LogLine(
        at=float(math.floor(at)), round=work[0], kind=work[1], outcome=outcome, seconds=seconds
    )


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()
