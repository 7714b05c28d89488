"""The run folder as the ServerApp writes it: events and metrics as they happen, then the rest.

One writer. Lines are appended whole; files that others wait for appear in one piece.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from fedfactory.rounds.events import Event
from fedfactory.rounds.log import encode_event

EVENTS: Final = "events.jsonl"
METRICS: Final = "metrics.jsonl"
SUMMARY: Final = "summary.json"
MODEL: Final = "model.safetensors"


class RunFiles:
    """Appends to events.jsonl and metrics.jsonl; puts model and summary in place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._events = (folder / EVENTS).open("ab", buffering=0)
        self._metrics = (folder / METRICS).open("ab", buffering=0)
        self._count = 0

    def event(self, event: Event) -> None:
        """Append one event."""
        self._events.write(encode_event(self._count, event).encode() + b"\n")
        self._count += 1

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append one round's line."""
        self._metrics.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    def model(self, source: Path) -> str:
        """Copy the final model into the folder, durably; return its file name."""
        partial = self.folder / f".{MODEL}.part"
        shutil.copyfile(source, partial)
        _sync(partial)
        partial.replace(self.folder / MODEL)
        return MODEL

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, durably and in one piece: when it is there, the run is over."""
        write_summary(self.folder, summary)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._events.close()
        self._metrics.close()


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json into a run folder, durably and in one piece."""
    partial = folder / f".{SUMMARY}.part"
    partial.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    _sync(partial)
    partial.replace(folder / SUMMARY)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
