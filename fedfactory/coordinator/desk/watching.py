"""A run as its operators see it: its events as they are written, its models, its results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.gateway.blobs import blob_path
from fedfactory.coordinator.run_progress import Tail
from fedfactory.coordinator.running.checkpoints import MODELS
from fedfactory.coordinator.running.journal import JOURNAL, read_events
from fedfactory.coordinator.running.run_files import SUMMARY
from fedfactory.coordinator.runs import Run
from fedfactory.rounds.events import ModelAggregated
from fedfactory.rounds.log import decode_event
from fedfactory.wire.operations import RunStatus, Watched

LOOK_EVERY_S: Final = 0.05
# gRPC notices that a caller has gone when the next piece is ready for it.
BEAT_S: Final = 5.0


def watch(
    run: Run, after: int, *, follow: bool, status: Callable[[], RunStatus]
) -> Iterator[Watched]:
    """Yield a run's events from number `after` on, then its summary; without `follow`, no more.

    A piece without event or summary tells that the status changed, or that we are still here.
    """
    tail = Tail(run.folder / JOURNAL, after)
    told: RunStatus | None = None
    spoke_at = 0.0
    while True:
        over = run.ended or not follow  # before reading: what it wrote last is read
        now_status = status()
        found = tail.read()
        for number, line in found:
            yield Watched(number=number + 1, status=now_status, event=line, summary=None)
        if over:
            text = (run.folder / SUMMARY).read_text() if run.ended else None
            yield Watched(number=tail.number, status=now_status, event=None, summary=text)
            return
        if not found and (now_status != told or time.monotonic() - spoke_at > BEAT_S):
            yield Watched(number=tail.number, status=now_status, event=None, summary=None)
            spoke_at = time.monotonic()
        elif found:
            spoke_at = time.monotonic()
        told = now_status
        time.sleep(LOOK_EVERY_S)


def kept_models(run: Run) -> dict[int, BlobRef]:
    """Return the models whose files are kept, by round (0: the initial one), oldest first."""
    found: dict[int, BlobRef] = {}
    for _, line in read_events(run.folder / JOURNAL):
        if '"RunStarted"' in line:
            found = {0: run.facts.initial}
        elif '"ModelAggregated"' in line:  # the same in every form
            _, event = decode_event(line)
            assert isinstance(event, ModelAggregated)
            found[event.round] = event.model
    return {number: ref for number, ref in found.items() if _path(run, ref).exists()}


def find_model(run: Run, number: int | None) -> tuple[int, BlobRef] | None:
    """Return round and reference of a kept model; `number` None: of the one that the run keeps.

    None if it is not kept, or there is none yet.
    """
    kept = kept_models(run)
    if number is not None:
        return (number, kept[number]) if number in kept else None
    digest = run.summary().get("model", {}).get("digest") if run.ended else None
    if digest is None and kept:
        last = max(kept)
        return last, kept[last]
    rounds = [n for n, ref in kept.items() if ref.digest == digest]
    return (rounds[-1], kept[rounds[-1]]) if rounds else None


def _path(run: Run, ref: BlobRef) -> Path:
    return blob_path(run.folder / MODELS, ref.digest)
