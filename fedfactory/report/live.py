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

from fedfactory.report.table import print_results
from fedfactory.report.terminal import lasting
from fedfactory.report.text import now_line, number, percent, took_part, why_missing
from fedfactory.rounds.events import Event, OrdersSent
from fedfactory.rounds.history import History, append
from fedfactory.rounds.summary import round_entry

_FRAME_LINES = 7  # two lines of header, column titles, two lines below, a little air


class LiveReporter:
    """Redraws a few times a second; shows the newest rounds that fit."""

    def __init__(self, stream: TextIO, *, sites_note: str) -> None:
        self._console = Console(file=lasting(stream))
        self._note = sites_note
        self._history = History.new()
        self._stage: str | None = "starting"
        self._began = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=8, transient=True
        )
        self._live.start()

    def stage(self, text: str) -> None:
        """Show what start-up, or the end, is busy with."""
        self._stage = text

    def event(self, event: Event) -> None:
        """Take in one event."""
        self._history = append(self._history, event)
        if isinstance(event, OrdersSent):
            self._stage = None

    def tick(self) -> None:
        """Nothing to do: the view redraws by itself."""

    def finish(self, summary: Mapping[str, Any], folder: str) -> None:
        """Take the live view down and print the results."""
        self.close()
        print_results(summary, folder, self._console.file)

    def close(self) -> None:
        """Take the live view down."""
        self._live.stop()

    def _render(self) -> RenderableType:
        elapsed = time.monotonic() - self._began
        return render(
            self._history,
            stage=self._stage,
            note=self._note,
            elapsed_s=elapsed,
            width=self._console.width,
            height=self._console.height,
            spinner=self._spinner,
        )


def render(
    history: History,
    *,
    stage: str | None,
    note: str,
    elapsed_s: float,
    width: int,
    height: int,
    spinner: Spinner,
) -> RenderableType:
    """Return the view of a run for a terminal of `width` by `height`. Pure but for the spinner."""
    doing = Text(f"{elapsed_s:.0f} s  {stage or now_line(history)}")
    doing.truncate(max(8, width - 3), overflow="ellipsis")
    spinner.update(text=doing)
    if history.plan is None:
        return spinner
    plan = history.plan
    shown = history.rounds[-max(1, height - _FRAME_LINES) :]
    entries = [round_entry(found, found.ended_at or found.began_at) for found in shown]
    table = Table(box=None, pad_edge=False)
    for title in ("round", "loss", "accuracy", "seconds"):
        table.add_column(title, justify="right", no_wrap=True)  # never squeezed
    table.add_column("took part")
    for entry in entries:
        table.add_row(
            str(entry["round"]),
            number(entry["metrics"]["loss"], 4),
            percent(entry["metrics"]["accuracy"]),
            number(entry["seconds"], 2),
            _line(took_part(entry)),
        )
    terms = plan.terms
    header = [f"run {terms.run_id}  {terms.task}, {terms.strategy}", f"sites {note}"]
    parts: list[RenderableType] = [*(_line(line, style="dim") for line in header), table]
    if entries and (away := why_missing(entries[-1])):
        site, reason = away[0]
        more = f" (and {len(away) - 1} more)" if len(away) > 1 else ""
        parts.append(_line(f"last round without {site}: {reason}{more}", style="dim"))
    return Group(*parts, spinner)


def _line(text: str, style: str = "") -> Text:
    """Text that takes one line however narrow the terminal."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")
