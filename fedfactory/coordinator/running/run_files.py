"""What people find in a run's folder: metrics as rounds finish, then the model and the summary.

One writer. The journal beside them is the truth: these are written from it, and again if they are
found missing or short after a crash.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.durable_file import remove_durably, write_durably

METRICS: Final = "metrics.jsonl"
SUMMARY: Final = "summary.json"


class RunFiles:
    """Writes metrics.jsonl and summary.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._written: set[int] = set()

    def begin(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl anew with the lines of the finished rounds, durably."""
        found = list(lines)
        write_durably(self.folder / METRICS, "".join(_line(line) for line in found))
        self._written = {int(line["round"]) for line in found}

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append one round's line, once. It is not synced: `begin` writes it after a crash."""
        if int(line["round"]) in self._written:
            return
        self._written.add(int(line["round"]))
        with (self.folder / METRICS).open("a") as file:
            file.write(_line(line))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, durably and in one piece: when it is there, the run is over."""
        write_durably(self.folder / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")

    def reopen(self) -> None:
        """Take summary.json away, durably: the run goes on."""
        if (self.folder / SUMMARY).exists():
            remove_durably(self.folder / SUMMARY)


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"
