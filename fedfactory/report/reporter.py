"""Shows a run while it lives: a calm live table in a terminal, plain lines anywhere else.

A terminal that goes away does not end the run: see terminal.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol, TextIO

from fedfactory.report.terminal import lasting
from fedfactory.report.text import now_line, round_lines
from fedfactory.rounds.events import Event, OrdersSent
from fedfactory.rounds.history import History, append

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


def make_reporter(stream: TextIO, *, sites_note: str) -> Reporter:
    """Return the live view for a terminal, plain lines otherwise."""
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
            self._say(f"run {plan.run_id}: {plan.task}, {plan.strategy}, {plan.rounds} rounds")
            self._say(f"sites {', '.join(plan.sites)} ({self._note})")
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
