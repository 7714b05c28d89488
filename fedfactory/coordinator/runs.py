"""The coordinator's runs: a folder each, and what their files say about them.

A run's folder holds what was asked (submission.json), what its process is told (settings.json),
its journal, models and results. What is to become of it lies there too: stop.json (a wish),
suspended.json (it died too often), reopen.json (an ended run is to go on); summary.json ends it.
Which of the waiting ones runs next is decided here; schedule.py starts them.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError, RefusedError, UnknownNameError
from fedfactory.contracts.versions import OtherFormError
from fedfactory.coordinator.run_facts import Taken, read_submission
from fedfactory.coordinator.run_progress import Progress
from fedfactory.coordinator.running.checkpoints import MODELS
from fedfactory.coordinator.running.journal import JOURNAL
from fedfactory.coordinator.running.run_files import SUMMARY
from fedfactory.durable_file import remove_durably, sync_folder, write_durably
from fedfactory.wire.operations import RunRow, RunStatus

log = logging.getLogger("fedfactory.coordinator")

SUBMISSION: Final = "submission.json"
SETTINGS: Final = "settings.json"
STOP: Final = "stop.json"
SUSPENDED: Final = "suspended.json"
REOPEN: Final = "reopen.json"
T = TypeVar("T")
_PART: Final = ".part"
_OWN: Final = (SUBMISSION, SETTINGS, JOURNAL, SUMMARY, MODELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWish:
    """An operator wants a run to stop."""

    reason: str
    after_round: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """Why a run waits for its operator; `at` is Unix seconds."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopened:
    """Who lets an ended run go on."""

    by: str


class Run:
    """One run: its folder and what it says. `facts` are known of a run of any form."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts, self._taken = read_submission((folder / SUBMISSION).read_bytes())
        self.progress = Progress(folder / JOURNAL, is_async=self.facts.mode == "async")
        self._over = False
        self._summary: tuple[int, dict[str, Any]] | None = None
        self._suspended: Suspended | None = None  # in mind, too: the disk may take nothing

    @property
    def run_id(self) -> str:
        """Its id."""
        return self.facts.run_id

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that may take part."""
        return self.facts.sites

    @property
    def taken(self) -> Taken:
        """What was submitted. Raises OtherFormError, see `check_form`."""
        self.check_form()
        assert isinstance(self._taken, Taken)
        return self._taken

    def check_form(self) -> None:
        """Check that this version wrote the run's files.

        Raises:
            OtherFormError: another one did: its events are not read, and it does not go on.
        """
        if isinstance(self._taken, OtherFormError):
            raise self._taken

    @property
    def ended(self) -> bool:
        """Whether it is over, and nobody has reopened it."""
        if not self._over:  # only `let_go_on` takes it back: an ended run costs no more looks
            # In this order: the run that goes on takes its summary away first, then the wish.
            self._over = not _is_there(self.folder / REOPEN) and _is_there(self.folder / SUMMARY)
        return self._over

    def summary(self) -> Mapping[str, Any]:
        """Return its results; {} if there are none yet. Damaged ones tell that they are."""
        path = self.folder / SUMMARY
        try:
            written = path.stat().st_mtime_ns
            if self._summary is None or self._summary[0] != written:
                self._summary = (written, _results(path))
        except FileNotFoundError:
            return {}
        return self._summary[1]

    def suspended(self) -> Suspended | None:
        """Return why it waits for its operator, or None. A run of another form waits for good."""
        if isinstance(self._taken, OtherFormError) and not self.ended:
            return Suspended(at=0.0, reason=self._taken.public_message)
        if self._suspended is not None:
            return self._suspended
        try:
            return _read(Suspended, self.folder / SUSPENDED)
        except (OSError, ProtocolError):
            told = f"it was suspended, and runs/{self.run_id}/{SUSPENDED} cannot be read"
            return Suspended(at=0.0, reason=told)

    def suspend(self, reason: str, now: float) -> None:
        """Let it wait for its operator: durably, if the disk takes it, else until we end."""
        self._suspended = Suspended(at=now, reason=reason)
        try:
            write_durably(self.folder / SUSPENDED, to_json(self._suspended))
        except OSError as error:
            log.error("run %s is suspended, which is not written: %s", self.run_id, error)  # noqa: TRY400

    def stop_wish(self) -> StopWish | None:
        """Return the wish to stop it, or None."""
        return _read(StopWish, self.folder / STOP)

    def wish_stop(self, wish: StopWish) -> None:
        """Keep the wish to stop it, durably, until it has ended."""
        write_durably(self.folder / STOP, to_json(wish))

    def let_go_on(self, by: str) -> None:
        """Let a suspended or ended run go on, durably."""
        remove_durably(self.folder / STOP)
        if self.ended:
            write_durably(self.folder / REOPEN, to_json(Reopened(by=by)))
            self._over = False
        remove_durably(self.folder / SUSPENDED)
        self._suspended = None


class Runs:
    """Every run there is. Methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for partial in folder.glob(f".*{_PART}"):
            shutil.rmtree(partial)
        self._left_out: dict[str, str] = {}
        found = filter(None, (self._open(path) for path in sorted(folder.iterdir())))
        self._runs = {run.run_id: run for run in sorted(found, key=_number)}

    def find(self, run_id: str) -> Run:
        """Return a run.

        Raises:
            UnknownNameError: there is none of that id.
            RefusedError: its folder could not be opened.
        """
        if run_id in self._left_out:
            raise RefusedError(self._left_out[run_id])
        with self._lock:
            if run_id not in self._runs:
                # No guess of what was meant: two runs' ids are alike, and one may be stopped by it.
                hint = "`fedfactory runs` lists them"
                raise UnknownNameError("run", run_id, list(self._runs)[-10:], hint=hint)
            return self._runs[run_id]

    def left_out(self) -> tuple[str, ...]:
        """Return a sentence for each run whose folder could not be opened, by run id."""
        return tuple(self._left_out.values())

    def _open(self, folder: Path) -> Run | None:
        """Open a run; one that cannot be read is left out, and does not stop the others."""
        if folder.name.startswith(".") or not any(_is_there(folder / name) for name in _OWN):
            return None
        try:
            return Run(folder)
        except FileNotFoundError:
            fault = f"{SUBMISSION} is missing"
        except (OSError, ProtocolError) as error:
            fault = f"{SUBMISSION} cannot be read: {error}".replace(str(folder), folder.name)
        told = (
            f"{folder.name} is damaged and left out: {fault}; put runs/{folder.name} back from a"
            " backup and restart the coordinator"
        )
        log.error("%s", told)
        self._left_out[folder.name] = told
        return None

    def all(self) -> list[Run]:
        """Return every run, oldest first."""
        with self._lock:
            return list(self._runs.values())

    def unfinished(self) -> list[Run]:
        """Return the runs that are to go on, in their order: those that had begun come first."""
        waiting = [run for run in self.all() if not run.ended and run.suspended() is None]
        return sorted(waiting, key=lambda run: (not run.progress.begun, run.facts.number))

    def next_number(self) -> int:
        """Return the place in the order of the next run."""
        with self._lock:
            return max(map(_number, self._runs.values()), default=-1) + 1

    def staging(self, run_id: str) -> Path:
        """Make and return the folder in which a new run is put together."""
        path = self._folder / f".{run_id}{_PART}"
        (path / MODELS).mkdir(mode=0o700, parents=True)
        path.chmod(0o700)
        return path

    def home_of(self, run_id: str) -> Path:
        """Return where a run's folder lies, or would lie."""
        return self._folder / run_id

    def add(self, staged: Path, taken: Taken) -> Run:
        """Make a run out of its staged files: it is there whole, or not at all.

        Raises:
            OSError: it could not be written.
        """
        write_durably(staged / SUBMISSION, taken.to_json())
        sync_folder(staged / MODELS)
        home = self.home_of(taken.plan.terms.run_id)
        with self._lock:
            staged.rename(home)
            sync_folder(self._folder)
            run = Run(home)
            self._runs[run.run_id] = run
        return run


def row_of(run: Run, status: RunStatus, place: int | None) -> RunRow:
    """Return a run's line in the list; `place` (from 1) is its place in the queue, None: not in."""
    facts, summary = run.facts, run.summary() if run.ended else {}
    suspended = run.suspended() if status == "suspended" else None
    run.progress.update()
    reason = summary.get("reason", "") or (suspended.reason if suspended else "")
    if place is not None:
        reason = f"number {place} in the queue"
    return RunRow(
        run_id=run.run_id,
        task=facts.task,
        strategy=facts.strategy,
        operator=facts.operator,
        status=status,
        round=run.progress.round,
        rounds=facts.rounds,
        sites=facts.sites,
        submitted_at=facts.at,
        ended_at=run.progress.last_at if summary else None,
        reason=reason,
        damage=_damage(run, summary),
    )


def status_of(run: Run, going: Iterable[str]) -> RunStatus:
    """Return where a run stands; `going` are the ids of those that have a place now."""
    if run.ended:
        status: RunStatus | None = run.summary().get("status")
        if status is not None:  # None: it is reopened just now
            return status
    if run.suspended() is not None:
        return "suspended"
    return "running" if run.run_id in going else "queued"


def _damage(run: Run, summary: Mapping[str, Any]) -> str:
    """Return what of a run's journal cannot be read, or is gone; empty if nothing is."""
    put_back = f"put runs/{run.run_id}/{JOURNAL} back from a backup"
    if fault := run.progress.fault:
        return f"{fault.replace(str(run.folder), f'runs/{run.run_id}')}; {put_back}"
    finished = len(summary.get("rounds", ())) if summary.get("status") == "completed" else 0
    if run.progress.round < finished:
        return (
            f"its journal ends in round {run.progress.round}, and its results have {finished}"
            f" rounds; {put_back}"
        )
    return ""


def _is_there(path: Path) -> bool:
    """Whether there is such a file; one that cannot be looked for is told when it is read."""
    try:
        return path.exists()
    except OSError:
        return False


def _results(path: Path) -> dict[str, Any]:
    """Read a summary. One that is damaged says nothing but that: the run is no success."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and found.get("status") in get_args(RunStatus):
            return found
    except (ValueError, RecursionError):
        pass
    log.error("%s cannot be read; put it back from a backup", path)
    told = f"runs/{path.parent.name}/{SUMMARY} cannot be read; put it back from a backup"
    return {"status": "failed", "reason": told}


def _number(run: Run) -> int:
    return run.facts.number


def _read(kind: type[T], path: Path) -> T | None:
    try:
        return from_json(kind, path.read_bytes())
    except FileNotFoundError:
        return None
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error.public_message}") from error
