"""The live view: a small table that grows with the rounds, and one line that says what goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fedfactory.report.reporter import unbroken
from fedfactory.report.table import print_results
from fedfactory.report.text import now_line, number, percent, took_part
from fedfactory.rounds.events import Event
from fedfactory.rounds.history import History, append

_FRAME_LINES = 9  # header, borders, status line and a little air


class LiveReporter:
    """Redraws a few times a second; shows the newest rounds that fit."""

    def __init__(self, stream: TextIO, *, sites_note: str) -> None:
        self._console = Console(file=stream)
        self._note = sites_note
        self._history = History.new()
        self._stage = "starting"
        self._began = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=8, transient=True
        )
        self._live.start()

    def stage(self, text: str) -> None:
        """Show what start-up is busy with."""
        self._stage = text

    def event(self, event: Event) -> None:
        """Take in one event."""
        self._history = append(self._history, event)

    def tick(self) -> None:
        """Nothing to do: the view redraws by itself."""

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """Take the live view down and print the results."""
        self.close()
        with unbroken():
            print_results(summary, folder, self._console.file)

    def close(self) -> None:
        """Take the live view down."""
        with unbroken():
            self._live.stop()

    def _render(self) -> RenderableType:
        elapsed = time.monotonic() - self._began
        return render(
            self._history,
            stage=self._stage,
            note=self._note,
            elapsed_s=elapsed,
            height=self._console.height,
            spinner=self._spinner,
        )


def render(
    history: History, *, stage: str, note: str, elapsed_s: float, height: int, spinner: Spinner
) -> RenderableType:
    """Return the view of a run for a terminal `height` lines high. Pure but for the spinner."""
    started = history.plan is not None
    spinner.update(text=Text(f"{now_line(history) if started else stage}  {elapsed_s:.0f} s"))
    if history.plan is None:
        return spinner
    plan = history.plan
    header = Text(f"run {plan.run_id}  {plan.task}, {plan.strategy}\nsites {note}", style="dim")
    table = Table(box=None, pad_edge=False)
    table.add_column("round", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("took part", overflow="ellipsis", no_wrap=True)
    for found in history.rounds[-max(1, height - _FRAME_LINES) :]:
        table.add_row(
            str(found.number),
            number(found.metrics.get("loss"), 4),
            percent(found.metrics.get("accuracy")),
            number((found.ended_at or found.began_at) - found.began_at, 2),
            took_part(found),
        )
    return Group(header, table, spinner)
