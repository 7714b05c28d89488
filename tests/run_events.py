"""Events of a run, and something to feed them to: for tests of the machine."""

from __future__ import annotations

from typing import Any

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.contracts.updates import Payload, Update
from fedfactory.rounds.events import (
    Command,
    Event,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunStarted,
    Taken,
)
from fedfactory.rounds.machine import RunState, replay, step
from tests.run_plans import blob, run_plan

PLAN = run_plan()


def accepted(
    site: str,
    kind: Any = "train",
    round: int = 1,  # noqa: A002
    *,
    at: float = 1.0,
    blob: BlobRef = blob(99),  # noqa: B008
    order_digest: str = "",
    **fields: Any,
) -> ReplyAccepted:
    """A site's update to its order of (round, kind); `fields` are the update's own."""
    trains = kind == "train"
    work = WorkKey(
        coordinator="hub", run_id="r", round=round, kind=kind, site=site, order_digest=order_digest
    )
    given = {"examples": 10, "metrics": {"loss": 1.0}, "seconds": 0.5, "privacy": None, **fields}
    payload = Payload(form="delta", blob=blob) if trains else None
    update = Update(work=work, payload=payload, **given)
    return ReplyAccepted(at=at, update=update, norm_l2=1.0 if trains else None)


def refused(
    site: str,
    code: str = "work_failed",
    kind: Any = "train",
    round: int = 1,  # noqa: A002
) -> ReplyRefused:
    return ReplyRefused(at=1.0, round=round, kind=kind, site=site, code=code, detail="")


def sent(*sites: str, kind: Any = "train", round: int = 1) -> OrdersSent:  # noqa: A002
    return OrdersSent(at=1.0, round=round, kind=kind, sites=sites)


def taken(*sites: str, round: int = 1) -> tuple[Taken, ...]:  # noqa: A002
    return tuple(Taken(site=site, order_round=round, staleness=0) for site in sites)


def made(number: int, at: float = 2.0) -> ModelAggregated:
    return ModelAggregated(at=at, round=number, model=blob(number), state=None)


class Run:
    """Feeds events to the machine; remembers the log and the last commands."""

    def __init__(self, plan: RunPlan = PLAN) -> None:
        self.state = RunState.new()
        self.log: list[Event] = []
        self.last: tuple[Command, ...] = ()
        self.feed(RunStarted(at=0.0, plan=plan, connected=plan.terms.sites))

    def train(self, number: int, *sites: str) -> tuple[Command, ...]:
        """A training phase in which these sites, or all that are asked, give their updates."""
        asked = self.state.sites("train", "asked")
        self.feed(sent(*asked, round=number))
        self.feed(*(accepted(site, round=number) for site in sites or asked))
        return self.last

    def finish_round(self, number: int, value: float | None = None) -> tuple[Command, ...]:
        """A whole round; with `value`, its metrics (loss) are measured by the sites."""
        self.train(number)
        self.feed(made(number))
        if value is None:
            return self.last
        asked = self.state.sites("evaluate", "asked")
        self.feed(sent(*asked, kind="evaluate", round=number))
        self.feed(*(accepted(site, "evaluate", round=number) for site in asked))
        return self.feed(MetricsAggregated(at=3.0, round=number, metrics={"loss": value}))

    def feed(self, *events: Event) -> tuple[Command, ...]:
        for event in events:
            self.log.append(event)
            self.state, self.last = step(self.state, event)
        if len(self.log) < 100:  # what replays once replays again: long runs would cost a square
            assert replay(self.log) == self.state
        return self.last

    def only(self, kind: type) -> Any:
        """The one command of this kind among the last."""
        (found,) = [command for command in self.last if isinstance(command, kind)]
        return found
