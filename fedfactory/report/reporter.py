"""Shows a run while it lives: a calm live table in a terminal, plain lines anywhere else.

For programs a line of JSON per event, or nothing. A terminal that goes away does not end the run:
see terminal.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final, Literal, Protocol, TextIO

from fedfactory.report.terminal import lasting
from fedfactory.report.text import now_line, round_lines, rounds_of
from fedfactory.rounds.events import Event, OrdersSent
from fedfactory.rounds.history import History, append
from fedfactory.rounds.log import encode_event

Form = Literal["words", "json", "quiet"]
LIFE_SIGN_S: Final = 10.0


class Reporter(Protocol):
    """What local mode tells its reader."""

    def stage(self, text: str) -> None:
        """Say what start-up, or the end, is busy with."""

    def event(self, event: Event) -> None:
        """Take in one event of the run."""

    def tick(self) -> None:
        """Be called often; show that time passes."""

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """Show the results."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


def make_reporter(stream: TextIO, *, form: Form, sites_note: str) -> Reporter:
    """Return what shows a run; for words the live view in a terminal, plain lines elsewhere."""
    if form == "json":
        return JsonReporter(stream)
    if form == "quiet":
        return QuietReporter()
    if stream.isatty():
        from fedfactory.report.live import LiveReporter

        return LiveReporter(stream, sites_note=sites_note)
    return PlainReporter(stream, sites_note=sites_note)


class PlainReporter:
    """One line per stage and per finished round; a life sign when nothing else was said."""

    def __init__(self, stream: TextIO, *, sites_note: str) -> None:
        self._stream = lasting(stream)
        self._note = sites_note
        self._history = History.new()
        self._stage: str | None = "starting"
        self._spoke_at = time.monotonic()

    def stage(self, text: str) -> None:
        """Print a line."""
        self._stage = text
        self._say(f"{text} ...")

    def event(self, event: Event) -> None:
        """Print a line when a round is over."""
        before = self._history
        self._history = append(before, event)
        if isinstance(event, OrdersSent):
            self._stage = None
        plan = self._history.plan
        if before.plan is None and plan is not None:
            terms = plan.terms
            self._say(
                f"run {terms.run_id}: {terms.task}, {terms.strategy}, {rounds_of(terms.rounds)}"
            )
            self._say(f"sites {', '.join(terms.sites)} ({self._note})")
        for found in self._history.rounds[len(before.rounds) :]:
            for line in round_lines(found):
                self._say(line)

    def tick(self) -> None:
        """Print a life sign after ten quiet seconds."""
        if time.monotonic() - self._spoke_at > LIFE_SIGN_S:
            self._say(f"... {self._stage or now_line(self._history)}")

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """Print the final table."""
        from fedfactory.report.table import print_results

        print_results(summary, folder, self._stream)

    def close(self) -> None:
        """Nothing to undo."""

    def _say(self, line: str) -> None:
        self._spoke_at = time.monotonic()
        print(line, file=self._stream, flush=True)


class QuietReporter:
    """Says nothing."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def event(self, event: Event) -> None:
        """Say nothing."""

    def tick(self) -> None:
        """Say nothing."""

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Nothing to undo."""


class JsonReporter(QuietReporter):
    """A line per event, as events.jsonl has them, and at last the summary's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._count = 0

    def event(self, event: Event) -> None:
        """Print the event's line."""
        print(encode_event(self._count, event), file=self._stream, flush=True)
        self._count += 1

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """Print the summary's line."""
        del folder
        line = json.dumps({"summary": summary}, allow_nan=False)
        print(line, file=self._stream, flush=True)
