"""Results that wait for a person of the site: what they are shown, and what they decided.

HOME/control/approvals holds, for each unit of work, `<work id>.request.json` from the moment it
waits until it has left or was denied for good, and `<work id>.decision.json` once somebody decided.
A decision names the digest of the update that was looked at, and counts for no other. A file that
does not hold is no approval. Whether a person is asked at all is the policy's (needs_approval).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError, UnknownNameError, UsageError
from fedfactory.contracts.orders import WorkKey, WorkKind
from fedfactory.durable_file import remove_durably, write_durably
from site_agents.control import CONTROL_FOLDER
from site_agents.jobs.job import job_folder
from site_agents.leaving import Leaving
from site_agents.trusted_file import write_fault

FOLDER: Final = "approvals"
REQUEST: Final = ".request.json"
DECISION: Final = ".decision.json"
_WORK_ID: Final = re.compile(r"\d{6,}-(train|evaluate)-[0-9a-f]{16}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a person decided on one update, when (Unix seconds) and why."""

    approved: bool
    by: str
    at: float
    reason: str
    update: str
    terms_digest: str
    kind: WorkKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Finished work that waits for a person of the site; ask again when they have decided."""

    work_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An update that has not left, since when it waits, and what was decided on it so far."""

    work_id: str
    since: float
    leaving: Leaving
    decision: Decision | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    since: float
    outbound: Leaving


def work_id(key: WorkKey) -> str:
    """Return the name of a unit of work here: that of its job's folder."""
    return job_folder(Path(), key).name


class Approvals:
    """The requests and decisions of one home. Holds no state: each call reads what is there now."""

    def __init__(self, home: Path) -> None:
        self._folder = home / CONTROL_FOLDER / FOLDER

    # ---- the agent asks ------------------------------------------------------------------------

    def request(self, work_id: str, leaving: Leaving) -> None:
        """Ask a person about an update; durable when it returns. Asked twice, it is asked once.

        Another update under the same work id takes the place of the first, and what was decided on
        the first is forgotten. Raises OSError if it cannot be written.
        """
        asked = _read(_Request, self._path(work_id, REQUEST))
        if asked is not None and asked.outbound == leaving:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        decision = _read(Decision, self._path(work_id, DECISION))
        if decision is not None and decision.update != leaving.update:
            remove_durably(self._path(work_id, DECISION))
        request = _Request(since=time.time(), outbound=leaving)
        write_durably(self._path(work_id, REQUEST), to_json(request))

    def decision(self, work_id: str, update: str) -> Decision | None:
        """Return what was decided on the update of this digest; None while nothing was."""
        found = _read(Decision, self._path(work_id, DECISION))
        return found if found is not None and found.update == update else None

    def approved_before(self, terms_digest: str, kind: WorkKind) -> bool:
        """Whether a person approved a result of this plan and kind."""
        decisions = (_read(Decision, path) for path in self._files(DECISION))
        return any(
            found.approved and (found.terms_digest, found.kind) == (terms_digest, kind)
            for found in decisions
            if found is not None
        )

    def settle(self, work_id: str) -> None:
        """It has left, or was denied and answered: nothing waits any more. Raises OSError."""
        if self._folder.is_dir():
            remove_durably(self._path(work_id, REQUEST))

    def pending(self) -> frozenset[str]:
        """Return the ids of work that has not left and still may: its files must be kept."""
        now = time.time()
        requests = {path: _read(_Request, path) for path in self._files(REQUEST)}
        return frozenset(
            path.name.removesuffix(REQUEST)
            for path, found in requests.items()
            if found is None or now <= found.outbound.plan.not_after
        )

    # ---- a person answers ----------------------------------------------------------------------

    def waiting(self) -> tuple[Waiting, ...]:
        """Return what has not left, oldest first."""
        found = []
        for path in self._files(REQUEST):
            request, work_id = _read(_Request, path), path.name.removesuffix(REQUEST)
            if request is not None:
                found.append(
                    Waiting(
                        work_id=work_id,
                        since=request.since,
                        leaving=request.outbound,
                        decision=self.decision(work_id, request.outbound.update),
                    )
                )
        return tuple(sorted(found, key=lambda one: (one.since, one.work_id)))

    def damaged(self) -> tuple[Path, ...]:
        """Return the files that do not hold: they approve nothing."""
        return tuple(
            path
            for kind, suffix in ((_Request, REQUEST), (Decision, DECISION))
            for path in self._files(suffix)
            if _read(kind, path) is None
        )

    def find(self, asked: str) -> Waiting:
        """Return what waits under an id (Leaving.id).

        Raises:
            UsageError: nothing does, or several.
        """
        waiting = self.waiting()
        match [one for one in waiting if one.leaving.id == asked]:
            case [one]:
                return one
            case []:
                if not waiting:
                    raise UsageError("nothing waits for approval")
                raise UnknownNameError("id", asked, (one.leaving.id for one in waiting))
            case _:
                raise UsageError(f"several updates are called {asked!a}: deny them one by one")

    def decide(self, one: Waiting, *, approved: bool, by: str, reason: str) -> Decision:
        """Decide on what was shown; durable when it returns. Raises OSError."""
        decision = Decision(
            approved=approved,
            by=by,
            at=time.time(),
            reason=reason,
            update=one.leaving.update,
            terms_digest=one.leaving.terms_digest,
            kind=one.leaving.kind,
        )
        write_durably(self._path(one.work_id, DECISION), to_json(decision))
        return decision

    def _path(self, work_id: str, suffix: str) -> Path:
        assert _WORK_ID.fullmatch(work_id), "a work id is made here"
        return self._folder / f"{work_id}{suffix}"

    def _files(self, suffix: str) -> Iterator[Path]:
        for path in sorted(self._folder.glob(f"*{suffix}")):
            if _WORK_ID.fullmatch(path.name.removesuffix(suffix)):
                yield path


def _read(kind: type[T], path: Path) -> T | None:
    """Return what a file says; None: it is not there, does not hold, or others may write it."""
    try:
        if write_fault(path):
            return None
        return from_json(kind, path.read_bytes())
    except (OSError, ProtocolError, UsageError):
        return None
