"""What a run must add up to, worked out anew from its journal and from what was seen to be made.

Nothing here uses what makes models or keeps books: the means are taken in float64 from the files
that the sites made, and the ledgers are read as an administrator would.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import Anchor
from fedfactory.contracts.updates import Update
from fedfactory.privacy.budget import work_name
from fedfactory.privacy.entries import RunKey
from fedfactory.rounds.events import (
    CheckpointLost,
    Event,
    ModelAggregated,
    ReplyAccepted,
    RunStarted,
)
from fedfactory.wire.arrays import Array, file_ref, read_arrays
from site_agents.jobs.job import folder_name
from site_agents.ledger import Ledger
from tests.federation.consortium import NAME, Consortium

LOOK_EVERY_S = 0.05
ROUNDING = 1e-6  # float32 against float64; one update counted twice moves digits by 1e-3 and more


class Witness:
    """Keeps, by hard links, every update that a site finished and every model that was made."""

    def __init__(self, consortium: Consortium) -> None:
        self._consortium = consortium
        self._seen = consortium.folder / "seen"
        self._seen.mkdir()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look every moment, until the block is left."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_EVERY_S):
                self._look()

        eyes = threading.Thread(target=watch)
        eyes.start()
        try:
            yield
        finally:
            over.set()
            eyes.join()
            self._look()

    def arrays(self) -> Mapping[str, Mapping[str, Array]]:
        """Return what was seen, by digest."""
        files = {file_ref(path).digest: path for path in self._seen.iterdir()}
        return {digest: read_arrays(path) for digest, path in files.items()}

    def updates(self, site: str) -> Mapping[str, set[str]]:
        """Return the digests of the updates that a site made, by the folder of their work."""
        found = defaultdict(set)
        for path in self._seen.glob(f"{site}@*"):
            found[path.name.split("@")[1]].add(file_ref(path).digest)
        return found

    def _look(self) -> None:
        for model in self._consortium.home.glob("runs/*/models/*"):
            if model.is_file():
                self._keep(model, "coordinator@model")
        for site, home in self._consortium.sites.items():
            for update in home.glob("spool/jobs/*/update.safetensors"):
                self._keep(update, f"{site}@{update.parent.name}")

    def _keep(self, path: Path, name: str) -> None:
        with suppress(FileNotFoundError, FileExistsError):
            os.link(path, self._seen / f"{name}@{path.stat().st_ino}")


def check_models(events: Sequence[Event], seen: Mapping[str, Mapping[str, Array]]) -> BlobRef:
    """Hold every model against the mean of the updates that the journal names; return the last.

    A site's update counts once in its round, however often it is named; FedAvg by examples.
    """
    given: dict[tuple[int, str], ReplyAccepted] = {}
    model: BlobRef | None = None
    made = 0
    for event in events:
        assert not isinstance(event, CheckpointLost), event
        if isinstance(event, RunStarted):
            model = event.plan.terms.initial
        elif isinstance(event, ReplyAccepted) and event.kind == "train":
            first = given.setdefault((event.round, event.site), event)
            assert first.update.payload == event.update.payload, (
                "one piece of work gave two updates"
            )
        elif isinstance(event, ModelAggregated):
            made += 1
            assert event.round == made, "a round was made twice, or left out"
            assert model is not None
            updates = [answer.update for (number, _), answer in given.items() if number == made]
            _check_model(seen[event.model.digest], seen[model.digest], updates, seen)
            model = event.model
    assert model is not None
    return model


def _check_model(
    model: Mapping[str, Array],
    base: Mapping[str, Array],
    updates: Sequence[Update],
    seen: Mapping[str, Mapping[str, Array]],
) -> None:
    weights = [float(update.examples or 0) for update in updates]
    deltas = [seen[update.payload.blob.digest] for update in updates if update.payload]
    for name, found in model.items():
        step = sum(
            w * delta[name].astype(np.float64) for w, delta in zip(weights, deltas, strict=True)
        )
        expected = base[name].astype(np.float64) + step / sum(weights)
        assert np.abs(found - expected).max() < ROUNDING, f"{name} is no mean of what sites gave"


def check_books(
    consortium: Consortium, site: str, events: Sequence[Event], made: Mapping[str, set[str]]
) -> None:
    """Hold a site's ledger against the journal, against its anchor, and against what it made."""
    (started,) = [event for event in events if isinstance(event, RunStarted)]
    answers = [e for e in events if isinstance(e, ReplyAccepted) and e.site == site]
    ledger = Ledger.open(consortium.sites[site])
    try:
        anchor = from_json(Anchor, (consortium.home / "anchors" / f"{site}.json").read_text())
        assert ledger.contradiction(anchor) is None
        for answer in answers:
            key = answer.update.work
            update = ledger.finished(key)
            assert update is not None, f"{key} counts, and is not in the ledger"
            assert (update.payload, update.privacy) == (
                answer.update.payload,
                answer.update.privacy,
            )
            begun = ledger.budget.works[work_name(key)].reservations
            folder = folder_name(key.round, key.kind, key.order_digest)
            assert len(begun) >= len(made.get(folder, ())), "data was touched unpaid"
        if started.plan.terms.privacy is not None:
            _check_budget(
                ledger, RunKey(coordinator=NAME, run_id=started.plan.terms.run_id), answers
            )
    finally:
        ledger.close()


def _check_budget(ledger: Ledger, run: RunKey, answers: Sequence[ReplyAccepted]) -> None:
    """Every reservation is spent, and epsilon only rose from answer to answer."""
    budget = ledger.budget
    taken = [
        charge.steps
        for name, work in budget.works.items()
        if name[:2] == (run.coordinator, run.run_id)
        for reservation in work.reservations
        if reservation is not None
        for charge in (reservation[1],)
    ]
    assert sum(budget.runs[run].spent.values()) == sum(taken)
    spent = [answer.update.privacy for answer in answers]
    told = [found.epsilon_run for found in spent if found is not None]
    assert len(told) == len(answers)
    assert told == sorted(told)
    assert budget.epsilon_run(ledger.accountant, run) >= told[-1]
