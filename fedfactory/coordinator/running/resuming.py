"""How a run goes on after its process died.

The journal replays, files are checked, the strategy is given its memory back and makes the calls
since then again. What a dead process had been asked is forgotten: RunResumed lets the machine ask
for all that is still to be done.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.running.checkpoints import Checkpoints, file_fault
from fedfactory.coordinator.running.run_parts import RunParts
from fedfactory.coordinator.running.standing import bases, claims_of, waiting_updates
from fedfactory.rounds.events import CheckpointLost, Event, RunReopened, RunResumed, UpdateLost
from fedfactory.rounds.summary import metrics_line

log = logging.getLogger("fedfactory.runner")

REOPEN: Final = "reopen.json"


def resume(parts: RunParts, events: Iterable[Event], connected: tuple[str, ...]) -> None:
    """Bring `parts.life` to where the journal ends, and journal that the run goes on.

    Afterwards `life.todo` holds what is to be done; an ended run's is its Finish.

    Raises:
        IntegrityError: no model of the run can be read any more.
    """
    life, folder = parts.life, Path(parts.settings.run_folder)
    life.replaying = True
    for event in events:
        life.apply(event)
        life.todo.clear()
    found = _reopened(parts, folder)
    if life.state.phase != "done":
        found += [*_lost_checkpoint(parts), *_lost_updates(parts)]
    life.todo.clear()
    if life.state.ended is not None:
        life.todo.append(life.state.ended)
    else:
        found.append(RunResumed(at=time.time(), connected=connected))
        life.apply(found[-1])
    if found:
        parts.journal.append(found)
    if life.state.phase != "done":
        parts.files.reopen()
    # Last: an old summary without it would say that the run is over.
    (folder / REOPEN).unlink(missing_ok=True)
    _hold(parts)
    life.replaying = False
    if life.state.phase != "done":
        life.standing.catch_up(life.state)


def _reopened(parts: RunParts, folder: Path) -> list[Event]:
    """Let an ended run go on if an operator asked for it."""
    path, life = folder / REOPEN, parts.life
    ended = life.state.ended
    if ended is None or ended.status == "completed" or not path.exists():
        return []
    event = RunReopened(at=time.time(), by=str(json.loads(path.read_text())["by"]))
    life.apply(event)
    log.info("the run was reopened by %s", event.by)
    return [event]


def _lost_checkpoint(parts: RunParts) -> list[Event]:
    """Fall back to the newest finished round whose files are whole, if the newest model's are not.

    A file that is not the newest's is read only if it is needed.
    """
    state, checkpoints = parts.life.state, parts.checkpoints
    reason = _fault(checkpoints, state.model, state.strategy_state)
    if reason is None:
        return []
    for finished in reversed(state.finished):
        if _fault(checkpoints, finished.model, finished.state) is None:
            event = CheckpointLost(at=time.time(), round=finished.round, reason=reason)
            log.warning("falling back to round %d: %s", event.round, reason)
            parts.life.apply(event)
            return [event]
    raise IntegrityError(
        f"no model of the run can be read any more ({reason}); put the folder"
        f" {parts.settings.run_folder}/models back from a backup, or begin a new run"
    )


def _fault(checkpoints: Checkpoints, model: BlobRef | None, state: BlobRef | None) -> str | None:
    for what, ref in (("model", model), ("strategy's memory", state)):
        if ref is not None and (fault := checkpoints.fault(ref)) is not None:
            return f"the newest {what} is {fault}"
    return None


def _lost_updates(parts: RunParts) -> list[Event]:
    """Name the accepted updates whose files are gone or damaged.

    Their sites are asked again, and send the same update again.
    """
    lost: list[Event] = []
    for answer in waiting_updates(parts.life.state):
        payload = answer.update.payload
        assert payload is not None
        fault = file_fault(parts.link.blob_path(payload.blob.digest), payload.blob)
        if fault is not None:
            log.warning("the update of '%s' in round %d is %s", answer.site, answer.round, fault)
            lost.append(UpdateLost(at=time.time(), round=answer.round, site=answer.site))
            parts.life.apply(lost[-1])
    return lost


def _hold(parts: RunParts) -> None:
    """Hold what is needed and delete what is not; write the metrics of finished rounds again."""
    life = parts.life
    life.claims = claims_of(waiting_updates(life.state))
    own = bases(life.state)
    parts.link.restore(life.claims, own)
    kept = {*life.state.stored, *own.values()}
    kept |= set() if life.state.ended is None else {life.state.ended.model}
    parts.checkpoints.sweep(kept)
    rounds = life.history.rounds
    parts.files.begin(metrics_line(life.history, found.number) for found in rounds)
