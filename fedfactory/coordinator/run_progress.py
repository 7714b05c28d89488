"""How far a run is, read from its journal while its process writes it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.coordinator.running.journal import read_events

log = logging.getLogger("fedfactory.coordinator")

# A process that comes back, what it then misses, and sites that come and go: no progress of a run.
_NO_PROGRESS: Final = frozenset(
    {"RunResumed", "SiteConnected", "SiteLost", "UpdateLost", "CheckpointLost"}
)
_FRESH_NS: Final = 200_000_000


class Progress:
    """What the journal told so far. Methods may be called from any thread.

    `begun` tells whether it holds anything; `round` is the one under way or the last; `steps`
    counts its events of substance (orders once, however often they are sent); `last_at` is the time
    of the last event (Unix seconds); `stopping` whether the run has taken a wish to stop,
    `stopping_now` one that waits for no round; `fault` why the journal could not be read (or "").
    """

    def __init__(self, journal: Path, *, is_async: bool) -> None:
        self._is_async = is_async
        self.round = 0
        self.steps = 0
        self.last_at: float | None = None
        self.stopping = self.stopping_now = False
        self.fault = ""
        self._journal = journal
        self._count = 0
        self._asked: dict[tuple[str, str], int] = {}  # the latest round, by kind and site
        self._reading = threading.Lock()

    @property
    def begun(self) -> bool:
        """Whether the run has written anything."""
        return self._count > 0 or self._journal.exists()

    def update(self) -> None:
        """Read what is new; a journal that cannot be read has told nothing new."""
        with self._reading:
            try:
                for number, line in read_events(self._journal, self._count):
                    self._note(json.loads(line))
                    self._count = number + 1
            except FedfactoryError as error:
                self._note_fault(error.public_message)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                name = type(error).__name__
                self._note_fault(f"{self._journal}: event {self._count} is damaged ({name})")
            else:
                self.fault = ""

    def _note_fault(self, found: str) -> None:
        if found != self.fault:  # it is looked at again and again
            log.warning("%s", found)
        self.fault = found

    def _note(self, event: Mapping[str, Any]) -> None:
        kind = str(event["event"])
        self.last_at = float(event["at"])
        self.steps += (
            self._is_new_order(event) if kind == "OrdersSent" else kind not in _NO_PROGRESS
        )
        # In async mode a training order's round is its site's own count of orders, of no model.
        own_count = self._is_async and kind == "OrdersSent" and event["kind"] == "train"
        if kind in ("OrdersSent", "ModelAggregated") and not own_count:
            self.round = max(self.round, int(event["round"]))
        if kind in ("StopRequested", "RunReopened"):
            self.stopping = kind == "StopRequested"
            self.stopping_now = self.stopping and not event.get("after_round")

    def _is_new_order(self, event: Mapping[str, Any]) -> bool:
        """Whether any site is asked for a round for the first time."""
        kind, number = str(event["kind"]), int(event["round"])
        new = False
        for site in event.get("sites", ()):  # a run of another form may tell otherwise
            new |= number > self._asked.get((kind, site), 0)
            self._asked[kind, site] = max(number, self._asked.get((kind, site), 0))
        return new


class Tail:
    """Reads a journal's new lines without asking SQLite where nothing was written."""

    def __init__(self, journal: Path, after: int) -> None:
        self.number = after
        self._journal = journal
        self._seen: tuple[tuple[int, int], ...] = ()

    def read(self) -> list[tuple[int, str]]:
        """Return number and line of each event that is new; see Journal's read_events."""
        seen = self._signature()
        fresh = any(time.time_ns() - written < _FRESH_NS for written, _ in seen)
        if seen == self._seen and not fresh:
            return []
        self._seen = seen
        found = read_events(self._journal, self.number)
        if found:
            self.number = found[-1][0] + 1
        return found

    def _signature(self) -> tuple[tuple[int, int], ...]:
        paths = (self._journal, self._journal.with_name(f"{self._journal.name}-wal"))
        found = []
        for path in paths:
            try:
                told = path.stat()
            except FileNotFoundError:
                continue
            found.append((told.st_mtime_ns, told.st_size))
        return tuple(found)
