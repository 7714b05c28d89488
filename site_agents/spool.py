"""What the pipeline keeps on disk: finished updates that may be asked for again, refused orders.

HOME/spool/jobs has a folder for each unit of work. A coordinator that lost an update asks again,
and the site must not train, and pay, twice: so each of the newest runs keeps its own newest few,
however busy the others are. What bounds it: KEEP_RUNS runs of KEEP_OF_RUN pieces of work, and all
of them a part of the disk's room; then the oldest runs' go first.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final

from fedfactory.contracts.orders import WorkKey
from fedfactory.privacy.entries import RunKey
from site_agents.approvals import Approvals
from site_agents.books import Books
from site_agents.jobs.job import job_folder
from site_agents.refused_before import REFUSED

log = logging.getLogger("site_agents.spool")

KEEP_OF_RUN: Final = 4
KEEP_RUNS: Final = 8
KEEP_REFUSED: Final = 20
# Of what would be free without the kept updates.
SHARE_OF_DISK: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One folder of finished work: whose, how large, and when (any clock) it was written."""

    name: str
    run: RunKey | None
    written: float
    size_bytes: int


class Spool:
    """The folders of one home. Safe to use from several threads."""

    def __init__(self, home: Path, books: Books, approvals: Approvals) -> None:
        self._jobs = home / "spool" / "jobs"
        self._refused = home / REFUSED
        self._books = books
        self._approvals = approvals
        self._lock = Lock()
        self._in_hand: Counter[str] = Counter()

    def folder(self, key: WorkKey) -> Path:
        """Return the folder of a unit of work."""
        return job_folder(self._jobs, key)

    @contextmanager
    def in_hand(self, key: WorkKey) -> Iterator[None]:
        """Keep the folder of a unit of work while somebody is at it."""
        name = self.folder(key).name
        with self._lock:
            self._in_hand[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_hand[name] -= 1
                self._in_hand += Counter()  # keeps those above zero

    def prune(self) -> None:
        """Remove the finished work that nobody will ask for again, as far as can be known."""
        with self._lock:
            needed = self._in_hand.keys() | self._approvals.pending()
            runs = self._books.runs_of_work()
            found = [_look(path, runs) for path in self._jobs.iterdir()]
            room = shutil.disk_usage(self._jobs).free + sum(one.size_bytes for one in found)
            for name in superfluous(found, int(SHARE_OF_DISK * room)):
                if name not in needed:
                    shutil.rmtree(self._jobs / name, ignore_errors=True)

    def keep_refused(self, key: WorkKey, text: str, came_at: float) -> None:
        """Keep the newest refused deliveries, for `site-agent policy explain`.

        The file's time is when the delivery came (Unix seconds): its deadline is judged by that.
        """
        folder = self._refused
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            file = folder / f"{job_folder(folder, key).name}.json"
            file.write_text(text)
            os.utime(file, (came_at, came_at))
            oldest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for old in oldest_first[:-KEEP_REFUSED]:
                old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the refused order could not be kept: %s", error)


def superfluous(found: Iterable[Kept], most_bytes: int) -> Collection[str]:
    """Return the names to remove: what is beyond each run's share, the runs', and the disk's. Pure.

    The newest of each run is kept before the second newest of any: one that is asked for again is
    almost always that.
    """
    by_run: dict[RunKey | None, list[Kept]] = {}
    for one in sorted(found, key=lambda one: (-one.written, one.name)):
        by_run.setdefault(one.run, []).append(one)  # runs come newest first, and so does their work
    newest_runs = list(by_run.values())[:KEEP_RUNS]
    wanted = [run[rank] for rank in range(KEEP_OF_RUN) for run in newest_runs if rank < len(run)]
    kept: set[str] = set()
    taken = 0
    for one in wanted:
        taken += one.size_bytes
        if taken > most_bytes and kept:
            break
        kept.add(one.name)
    return {one.name for run in by_run.values() for one in run} - kept


def _look(path: Path, runs: Mapping[str, RunKey]) -> Kept:
    sizes = [file.stat().st_size for file in path.iterdir()] if path.is_dir() else []
    return Kept(
        name=path.name,
        run=runs.get(path.name),
        written=path.stat().st_mtime,
        size_bytes=sum(sizes),
    )
