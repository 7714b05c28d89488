"""What one run gives, and how the peak memory of its processes is read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Seconds from the command to the end of round 1, seconds of each later round, peak MB."""

    first_s: float
    rounds_s: list[float]
    peak_mb: Mapping[str, float] = field(default_factory=dict)

    @property
    def round_s(self) -> float:
        """The median of the rounds after the first."""
        return statistics.median(self.rounds_s)


def note_peaks(pid: int, parts: Mapping[str, str], peak: dict[str, float]) -> None:
    """Raise `peak` to the VmHWM, in MB, of the descendants of `pid` that are one of `parts`.

    VmHWM is the kernel's own record of a process's highest resident size, so sampling seldom
    loses nothing but what a process does right before it ends. `parts` maps a name to words of
    the command line.
    """
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return
    for child in children:
        try:
            command = " ".join(child.cmdline())
            found = next((name for name, words in parts.items() if words in command), None)
            if found:
                status = Path(f"/proc/{child.pid}/status").read_text()
                line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
                peak[found] = max(peak.get(found, 0.0), int(line.split()[1]) * 1024 / 1e6)
        except (psutil.Error, OSError, StopIteration):
            continue
