"""Which runs have a place, and which is next: so many side by side, the rest in their order."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.coordinator.run_process import RunProcess, State
from fedfactory.coordinator.runs import Run, Runs, row_of, status_of
from fedfactory.wire.operations import RunRow, RunStatus

log = logging.getLogger("fedfactory.coordinator")


def to_start(waiting: Sequence[tuple[str, bool]], going: Iterable[str], at_once: int) -> list[str]:
    """Return the runs to start now, of those `waiting` in order: (run id, whether it is to stop).

    One that is to stop gets a place beside the others: it only comes to end.
    """
    going = set(going)
    free = at_once - len(going)
    starting = []
    for run_id, stopping in waiting:
        if run_id in going:
            continue
        if stopping or free > 0:
            starting.append(run_id)
            free -= 1
    return starting


class Schedule:
    """Starts and ends runs' processes in `tick`, on one thread; tells any thread how runs stand.

    `open_run(run)` gives a run its place.
    """

    def __init__(self, runs: Runs, at_once: int, open_run: Callable[[Run], RunProcess]) -> None:
        self._runs = runs
        self._at_once = at_once
        self._open = open_run
        self._lock = threading.Lock()
        self._going: dict[str, RunProcess] = {}

    def tick(self, now: float) -> None:
        """Look after every run, once."""
        for process in list(self._going.values()):
            self._look_after(process, now)
        unfinished = {run.run_id: run for run in self._runs.unfinished()}
        waiting: list[tuple[str, bool]] = []
        for run_id, run in unfinished.items():
            with _its_own_fault(run):
                waiting.append((run_id, run.stop_wish() is not None))
        for run_id in to_start(waiting, self._going, self._at_once):
            with _its_own_fault(unfinished[run_id]):
                process = self._open(unfinished[run_id])
                with self._lock:
                    self._going[run_id] = process
                self._look_after(process, now)

    def _look_after(self, process: RunProcess, now: float) -> None:
        """Look after one run; one that is over, or that something broke in, leaves its place."""
        run = process.run
        state: State = "suspended"
        with _its_own_fault(run):
            state = process.tick(now)
        if state != "going":
            log.info("run %s leaves its place: %s", run.run_id, state)
            with self._lock:
                del self._going[run.run_id]
            with _its_own_fault(run):
                process.close()

    def site_left(self, site: str, code: str) -> None:
        """Tell every run that a site will not come back; any thread."""
        with self._lock:
            processes = list(self._going.values())
        for process in processes:
            process.left(site, code)

    def pids(self) -> dict[str, int]:
        """Return the runs' processes, by run id."""
        with self._lock:
            processes = list(self._going.items())
        return {run_id: process.pid for run_id, process in processes if process.pid is not None}

    def status(self, run: Run) -> RunStatus:
        """Return where a run stands; any thread."""
        with self._lock:
            going = list(self._going)
        return status_of(run, going)

    def row(self, run: Run) -> RunRow:
        """Return a run's line in the list; any thread."""
        status = self.status(run)
        place = self.queue().index(run.run_id) + 1 if status == "queued" else None
        return row_of(run, status, place)

    def queue(self) -> list[str]:
        """Return the ids of the runs that wait for a place, in order; any thread."""
        with self._lock:
            going = set(self._going)
        return [run.run_id for run in self._runs.unfinished() if run.run_id not in going]

    def close(self) -> None:
        """End every run's process; the runs go on when a coordinator is here again."""
        with self._lock:
            processes, self._going = list(self._going.values()), {}
        for process in processes:
            try:
                process.close()
            except Exception:
                log.exception("run %s did not end well", process.run.run_id)


@contextmanager
def _its_own_fault(run: Run) -> Iterator[None]:
    """Let what breaks in one run be that run's: it is suspended, and the others go on."""
    try:
        yield
    except Exception as error:
        log.exception("run %s cannot be looked after", run.run_id)
        found = str(error) if isinstance(error, OSError | FedfactoryError) else type(error).__name__
        found = found.replace(str(run.folder), f"runs/{run.run_id}")  # operators read it elsewhere
        reason = (
            f"the coordinator could not look after it ({found}); its log says more;"
            f" `fedfactory resume {run.run_id}` lets it go on"
        )
        run.suspend(reason, time.time())
