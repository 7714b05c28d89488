"""Which runs have a place, and which is next: so many side by side, the rest in their order."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.coordinator.run_process import RunProcess, State
from fedfactory.coordinator.runs import Run, Runs, row_of, status_of
from fedfactory.wire.operations import RunRow, RunStatus

if TYPE_CHECKING:
    from fedfactory.coordinator.flower_seam import SuperLinkClient

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

    `open_run(run)` gives a run its place, `server_apps()` are those that live.
    """

    def __init__(
        self,
        runs: Runs,
        at_once: int,
        open_run: Callable[[Run], RunProcess],
        server_apps: Callable[[], frozenset[int]],
    ) -> None:
        self._server_apps = server_apps
        self._runs = runs
        self._at_once = at_once
        self._open = open_run
        self._lock = threading.Lock()
        self._going: dict[str, RunProcess] = {}
        self._broken: set[str] = set()

    def tick(self, now: float, client: SuperLinkClient | None) -> None:
        """Look after every run, once; `client` is the SuperLink that knows the sites, if any."""
        for run_id, process in list(self._going.items()):
            state = self._tick(process, now, client)
            if state != "going":
                log.info("run %s leaves its place: %s", run_id, state)
                with self._lock:
                    del self._going[run_id]
                process.close()
        unfinished = {
            run.run_id: run for run in self._runs.unfinished() if run.run_id not in self._broken
        }
        waiting = [(run_id, run.stop_wish() is not None) for run_id, run in unfinished.items()]
        for run_id in to_start(waiting, self._going, self._at_once):
            process = self._open(unfinished[run_id])
            with self._lock:
                self._going[run_id] = process
            self._tick(process, now, client)

    def _tick(
        self, process: RunProcess, now: float, client: SuperLinkClient | None
    ) -> State | Literal["broken"]:
        """Look after one run; what breaks in it does not stop the others, until the next start."""
        try:
            return process.tick(now, client, self._strangers)
        except (OSError, FedfactoryError):
            log.exception("run %s cannot be looked after", process.run.run_id)
            self._broken.add(process.run.run_id)
            return "broken"

    def _strangers(self) -> frozenset[int]:
        """Return the living ServerApps that no run knows yet, or no longer."""
        return self._server_apps() - {process.link.pid for process in self._going.values()}

    def site_left(self, site: str, code: str) -> None:
        """Tell every run that a site will not come back; any thread."""
        with self._lock:
            processes = list(self._going.values())
        for process in processes:
            process.link.left(site, code)

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
            process.close()
