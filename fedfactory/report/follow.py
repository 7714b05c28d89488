"""Reads a run folder while it is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedfactory.rounds.events import Event
from fedfactory.rounds.log import decode_event


class EventTail:
    """Yields the events appended since the last look; a line half-written waits for its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[Event]:
        """Yield what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield decode_event(line.decode())[1]
