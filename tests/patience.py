"""How long tests wait: limits in seconds of an idle machine, stretched by the load while they wait.

Contention is the number of runnable tasks (proc_loadavg(5), fourth field) for each core that this
process may use, at least 1: with 6 tasks on 2 cores, work takes about 3 times as long. The count is
read at each look and is current, unlike the load averages, which lag by a minute.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

LOOK_S = 0.02
# For limits that have to be set before the wait (gRPC calls, subprocesses): only a hang takes so
# long, whatever the load. What must be quick is measured with `prompt`.
HANG_S = 180.0


def cores(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how many cores this process may use: its affinity, or its control group's quota."""
    usable = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return min(usable, int(quota) / int(period))
    except (OSError, ValueError):  # no control group of version 2, or no quota ("max")
        return usable


def contention(loadavg: Path = Path("/proc/loadavg")) -> float:
    """Return how many times longer work takes now than with a core for each task: at least 1."""
    runnable = int(loadavg.read_text().split()[3].partition("/")[0])
    return max(1.0, runnable / cores())


def stretched(seconds: float) -> float:
    """Return a limit that has to be set beforehand, for the load of now and of the last minute."""
    return seconds * max(contention(), os.getloadavg()[0] / cores())


class LoadClock:
    """Counts seconds that pass more slowly under load; `read` at least every `LOOK_S` seconds."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = time.monotonic()

    def read(self) -> float:
        now = time.monotonic()
        self._seconds += (now - self._last) / contention()
        self._last = now
        return self._seconds


def until(
    found: Callable[[], object], seconds: float = 10, story: Callable[[], str] = lambda: ""
) -> float:
    """Wait until `found()` is true; return how long it took by the load's clock.

    Raises:
        AssertionError: it stays false for `seconds` of the load's clock; with `story()`.
    """
    clock, began = LoadClock(), time.monotonic()
    while not found():
        assert clock.read() < seconds, (
            f"not within {seconds} s ({time.monotonic() - began:.0f} s under this load)\n{story()}"
        )
        time.sleep(LOOK_S)
    return clock.read()


class Stopwatch:
    """Measures a block by the load's clock, with a thread that reads it."""

    def __enter__(self) -> Self:
        self._clock = LoadClock()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def read(self) -> float:
        with self._lock:
            return self._clock.read()

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            self.read()


@contextmanager
def prompt(seconds: float) -> Iterator[None]:
    """Assert that the block takes less than `seconds` by the load's clock."""
    with Stopwatch() as watch:
        yield
        took = watch.read()
    assert took < seconds, f"took {took:.2f} s, expected less than {seconds} s"
