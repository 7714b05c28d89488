"""Processes that are not our own children: what was left running and its end, and grandchildren.

Flower's programs die with the coordinator, but a ServerApp that was frozen cannot notice. All carry
the coordinator's home in their environment; whoever holds the lock on that home may end them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Container, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

MARK: Final = "FEDFACTORY_COORDINATOR_HOME"


def end_leftovers(home: Path, spare: Container[int] = ()) -> list[int]:
    """Kill the processes that a coordinator of this home started, but `spare`; return their ids.

    Call it while holding the home's lock.
    """
    found = [pid for pid in _marked(home) if pid not in spare]
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def living_children(pid: int) -> frozenset[int]:
    """Return the process ids of a process's children that have not ended; none if it has."""
    found: set[int] = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found.update(map(int, thread.read_text().split()))
    return frozenset(child for child in found if _lives(child))


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped by a signal and has not been continued."""
    return _state(pid) == "T"


def _lives(pid: int) -> bool:
    return _state(pid) not in ("Z", "X")


def _state(pid: int) -> str:
    """Return the letter by which Linux tells a process's state; X if there is none."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X"
    return told.rpartition(")")[2].split()[0]


def _marked(home: Path) -> Iterator[int]:
    mark = f"{MARK}={home}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # gone, or another user's
                continue
            if mark in environment.split(b"\0"):
                yield int(entry.name)
