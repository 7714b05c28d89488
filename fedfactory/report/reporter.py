"""Shows a run while it lives: a calm live table in a terminal, plain lines anywhere else.

A terminal that goes away must not end the run: writing errors are swallowed once and for all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol, TextIO

from fedfactory.report.text import now_line, round_line
from fedfactory.rounds.events import Event
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


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Swallow the errors of a reader that went away."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        yield


class PlainReporter:
    """One line per stage and per finished round; a life sign when nothing else was said."""

    def __init__(self, stream: TextIO, *, sites_note: str) -> None:
        self._stream = stream
        self._note = sites_note
        self._history = History.new()
        self._spoke_at = time.monotonic()

    def stage(self, text: str) -> None:
        """Print a line."""
        self._say(f"{text} ...")

    def event(self, event: Event) -> None:
        """Print a line when a round is over."""
        before = self._history
        self._history = append(before, event)
        plan = self._history.plan
        if before.plan is None and plan is not None:
            self._say(f"run {plan.run_id}: {plan.task}, {plan.strategy}, {plan.rounds} rounds")
            self._say(f"sites {', '.join(plan.sites)} ({self._note})")
        for found in self._history.rounds[len(before.rounds) :]:
            self._say(round_line(found))

    def tick(self) -> None:
        """Print a life sign after ten quiet seconds."""
        if time.monotonic() - self._spoke_at > LIFE_SIGN_S:
            self._say(f"... {now_line(self._history)}")

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """Print the final table."""
        from fedfactory.report.table import print_results

        with unbroken():
            print_results(summary, folder, self._stream)

    def close(self) -> None:
        """Nothing to undo."""

    def _say(self, line: str) -> None:
        self._spoke_at = time.monotonic()
        with unbroken():
            print(line, file=self._stream, flush=True)
