"""A followed run's folder: its events, a line per finished round, its model, its summary.

One writer, held by a lock. Everything is durable before the follower tells of it, and what is
derived (metrics.jsonl) is derived from the events alone: wherever a follower is cut and begun
again, the files come out the same.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedfactory.contracts.errors import IntegrityError, ProtocolError, UsageError
from fedfactory.contracts.versions import OtherFormError
from fedfactory.durable_file import remove_durably, sync_folder, write_durably
from fedfactory.rounds.events import Event, RunStarted
from fedfactory.rounds.history import History, append
from fedfactory.rounds.log import decode_event
from fedfactory.rounds.summary import metrics_line

EVENTS: Final = "events.jsonl"
METRICS: Final = "metrics.jsonl"
MODEL: Final = "model.safetensors"
SUMMARY: Final = "summary.json"
LOCK: Final = ".following"


class Line(NamedTuple):
    """One event as it came: its number, its line without the newline, and what it says."""

    number: int
    text: str
    event: Event


def read_line(text: str) -> Line:
    """Return an event's line, read. Raises ProtocolError."""
    number, event = decode_event(text)
    return Line(number, text, event)


def read_sent(run_id: str, text: str) -> Line:
    """Return an event's line as a coordinator sent it, read.

    Raises:
        OtherFormError: another version began the run.
        IntegrityError: it is no event: the coordinator's journal is damaged.
    """
    try:
        return read_line(text)
    except OtherFormError:
        raise
    except ProtocolError as error:
        raise IntegrityError(
            f"the coordinator's journal of {run_id} is damaged: it sent what is {error}; its"
            f" administrator puts runs/{run_id}/journal.sqlite back from a backup",
            diagnostic=error.diagnostic,
        ) from error


class RunFolder:
    """The files of one run, opened for its one writer.

    `held` are the events that lay there. A line cut short by a crash is taken away first.

    Raises:
        UsageError: another process writes there, it holds another run, or what it holds is no run.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise UsageError(
                f"{folder}: another process follows a run into this folder; name another with --out"
            ) from error
        try:
            self.held = self._whole_events(run_id)
            self._history = History.new()
            lines = self._fold(self.held)
            write_durably(folder / METRICS, "".join(f"{line}\n" for line in lines))
        except BaseException:
            os.close(self._lock)
            raise
        self._events = (folder / EVENTS).open("ab", buffering=0)
        self._metrics = (folder / METRICS).open("ab", buffering=0)
        sync_folder(folder)
        self.count = len(self.held)

    def add(self, lines: Sequence[Line]) -> None:
        """Append events, durably; rounds that they finish get their line in metrics.jsonl.

        Raises:
            ProtocolError: their numbers do not go on from what is there.
        """
        if not lines:
            return
        for expected, line in enumerate(lines, self.count):
            if line.number != expected:
                raise ProtocolError(f"expected event {expected} of the run, found {line.number}")
        if (self.folder / SUMMARY).exists():  # it was written when the run had ended before
            remove_durably(self.folder / SUMMARY)
        self._events.write("".join(f"{line.text}\n" for line in lines).encode())
        os.fsync(self._events.fileno())
        self.count += len(lines)
        finished = self._fold(line.event for line in lines)
        self._metrics.write("".join(f"{line}\n" for line in finished).encode())

    def model_file(self) -> Path:
        """Return where the run's model belongs."""
        return self.folder / MODEL

    def end(self, summary: dict[str, Any], *, model: bool) -> dict[str, Any]:
        """Write summary.json, durably: when it is there, all else is. Returns it as written.

        `model` tells whether the model lies in the folder.
        """
        os.fsync(self._metrics.fileno())
        told = {**summary, "model": {**summary["model"], "file": MODEL if model else None}}
        write_summary(self.folder, told)
        return told

    def close(self) -> None:
        """Let another process write here."""
        self._events.close()
        self._metrics.close()
        os.close(self._lock)

    def _whole_events(self, run_id: str) -> tuple[Event, ...]:
        path = self.folder / EVENTS
        if not path.exists():
            return ()
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            os.truncate(path, len(whole))
        try:
            lines = [read_line(text) for text in whole.decode().splitlines()]
        except (ProtocolError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{path}: not a run's events ({error}); name another folder"
            ) from error
        for expected, line in enumerate(lines):
            if line.number != expected:
                raise UsageError(f"{path}: expected event {expected}, found {line.number}")
        first = lines[0].event if lines else None
        if isinstance(first, RunStarted) and (held := first.plan.terms.run_id) != run_id:
            raise UsageError(f"{self.folder} holds the run {held}; name another folder with --out")
        return tuple(line.event for line in lines)

    def _fold(self, events: Iterable[Event]) -> list[str]:
        """Take events in; return the lines of the rounds that they finished."""
        lines = []
        for event in events:
            before = len(self._history.rounds)
            self._history = append(self._history, event)
            for found in self._history.rounds[before:]:
                line = metrics_line(self._history, found.number)
                lines.append(json.dumps(line, allow_nan=False))
        return lines


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json into a run folder, durably and in one piece."""
    write_durably(folder / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")
