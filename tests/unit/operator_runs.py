"""A run as a coordinator's watch shows it, and a played coordinator for those who follow one."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fedfactory.contracts.errors import UnreachableError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import (
    Event,
    Finish,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunStarted,
    SiteConnected,
)
from fedfactory.rounds.history import History, append
from fedfactory.rounds.log import encode_event
from fedfactory.rounds.summary import summary
from fedfactory.wire.operations import ModelFound, Watched
from tests.run_events import accepted
from tests.run_plans import run_plan

RUN_ID = "20261121-120000-ab12"
SITES = ("cesga", "lumi")
MODEL = b"the shared model"


def blob(number: int) -> BlobRef:
    return BlobRef(digest=f"sha256:{number:064x}", bytes=len(MODEL))


def plan(rounds: int, run_id: str = RUN_ID) -> RunPlan:
    return run_plan(
        run_id=run_id,
        initial=blob(0),
        rounds=rounds,
        sites=SITES,
        quorum=1,
        deadline_s=60.0,
        metric="accuracy",
        higher_is_better=True,
    )


def events(rounds: int = 2, run_id: str = RUN_ID) -> list[Event]:
    """A run in which lumi never trains: it refuses by its policy."""
    told: list[Event] = [
        RunStarted(at=1000.0, plan=plan(rounds, run_id), connected=("cesga",)),
        SiteConnected(at=1000.5, site="lumi"),
    ]
    for number in range(1, rounds + 1):
        at = 1000.0 + 10 * number
        told += [
            OrdersSent(at=at, round=number, kind="train", sites=SITES),
            _accepted(at + 1, number, "train"),
            ReplyRefused(
                at=at + 2, round=number, kind="train", site="lumi", code="policy_task", detail=""
            ),
            ModelAggregated(at=at + 3, round=number, model=blob(number), state=None),
            OrdersSent(at=at + 3, round=number, kind="evaluate", sites=("cesga",)),
            _accepted(at + 4, number, "evaluate"),
            MetricsAggregated(at=at + 5, round=number, metrics={"loss": 0.5, "accuracy": 0.9}),
        ]
    return told


def _accepted(at: float, number: int, kind: WorkKind) -> ReplyAccepted:
    metrics = {} if kind == "train" else {"loss": 0.5, "accuracy": 0.9}
    return accepted(
        "cesga", kind, number, at=at, blob=blob(100 + number), examples=100, metrics=metrics
    )


def lines(rounds: int = 2, run_id: str = RUN_ID) -> list[str]:
    return [encode_event(number, event) for number, event in enumerate(events(rounds, run_id))]


def summary_of(
    rounds: int = 2, run_id: str = RUN_ID, status: str = "completed", model: BlobRef | None = None
) -> str:
    history = History.new()
    for event in events(rounds, run_id):
        history = append(history, event)
    end = Finish(status=status, reason="as the test says", model=model or blob(rounds))
    return json.dumps(summary(history, end, traffic={}, model_file=None))


class PlayedWatch:
    """A coordinator's watch in memory: `cuts` says after how many pieces each stream breaks off.

    A stream for which there is no cut left goes to the end. `away` calls fail before any answers.
    """

    def __init__(self, told: list[str], summary: str, cuts: list[int], *, away: int = 0) -> None:
        self.told = told
        self.summary = summary
        self.cuts = list(cuts)
        self.away = away
        self.asked: list[int] = []
        self.stopped: list[str] = []

    def watch(self, run_id: str, after: int = 0) -> Iterator[Watched]:
        if run_id not in self.summary:
            raise UsageError(f"there is no run {run_id}")
        self.asked.append(after)
        cut = self.cuts.pop(0) if self.cuts else None
        for sent, number in enumerate(range(after, len(self.told) + 1)):
            if sent == cut:
                raise UnreachableError
            if number < len(self.told):
                yield Watched(
                    number=number + 1, status="running", event=self.told[number], summary=None
                )
            else:
                yield Watched(number=number, status="completed", event=None, summary=self.summary)

    def stop(self, run_id: str, mode: str) -> str:
        self._answer()
        self.stopped.append(mode)
        return "the run is being stopped"

    def find_model(self, run_id: str, number: int | None) -> ModelFound:
        self._answer()
        kept = json.loads(self.summary)["model"]
        ref = BlobRef(digest=kept["digest"], bytes=kept["bytes"])
        return ModelFound(model=ref, round=2, kept=(2,))

    def download(self, ref: BlobRef, into) -> None:
        self._answer()
        into.write_bytes(MODEL)

    def _answer(self) -> None:
        if self.away:
            self.away -= 1
            raise UnreachableError
