"""A whole run without processes: performs the machine's commands, forgets them at a crash.

Sites answer deterministically and from a cache; models are digests of what they were made from, so
two runs with equal final digests were made from the same updates in the same way. The journal, the
models and the updates outlive a crash; commands, timers and messages do not.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import (
    Aggregate,
    AggregateMetrics,
    CentralMeasured,
    CheckpointLost,
    Command,
    DeadlinePassed,
    Event,
    Finish,
    MeasureCentrally,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    RecordRound,
    ReplyAccepted,
    ReplyRefused,
    RunReopened,
    RunResumed,
    RunStarted,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLost,
    UpdateLost,
)
from fedfactory.rounds.keeping import needed
from fedfactory.rounds.machine import replay, step
from fedfactory.rounds.state import RunState
from tests.run_events import accepted
from tests.run_plans import blob

Key = tuple[str, str, int]  # site, kind, order's round


def ref_of(*parts: object) -> BlobRef:
    """A reference that says what it was made from."""
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    return BlobRef(digest=f"sha256:{digest}", bytes=8)


@dataclass
class World:
    """One run. Every choice comes from `chance`."""

    plan: RunPlan
    chance: random.Random
    refuse: float = 0.0
    state: RunState = field(default_factory=RunState.new)
    journal: list[Event] = field(default_factory=list)
    todo: list[Command] = field(default_factory=list)
    mail: list[tuple[Key, BlobRef]] = field(default_factory=list)
    answered: dict[Key, Event] = field(default_factory=dict)
    disk: set[str] = field(default_factory=lambda: {blob(0).digest})
    deadline: SetDeadline | None = None
    at: float = 0.0
    deaths: int = 0

    def start(self) -> None:
        """Begin the run with everybody here."""
        self.feed(RunStarted(at=0.0, plan=self.plan, connected=self.plan.terms.sites))

    def feed(self, event: Event) -> None:
        """Journal an event; then the machine sees it."""
        self.journal.append(event)
        self.state, commands = step(self.state, event)
        self.todo.extend(commands)
        assert needed(self.state) <= self.disk, "something needed was dropped"

    @property
    def over(self) -> bool:
        """Whether the run has ended and everything was done."""
        return self.state.phase == "done" and not self.todo

    def advance(self) -> None:
        """Do one thing: a command first, else deliver an answer, else let the deadline pass."""
        self.at += 1.0
        if self.todo:
            self.perform(self.todo.pop(0))
        elif self.mail:
            key, base = self.mail.pop(self.chance.randrange(len(self.mail)))
            self.answer(key, base)
        else:
            assert self.deadline is not None, "the run waits for nothing"
            passed, self.deadline = self.deadline, None
            self.at += passed.after_s
            self.feed(DeadlinePassed(at=self.at, round=passed.round, kind=passed.kind))

    def run(self, steps: int = 5000) -> Finish:
        """Go on to the end."""
        for _ in range(steps):
            if self.over:
                assert self.state.ended is not None
                assert self.state.ended.model.digest in self.disk
                return self.state.ended
            self.advance()
        raise AssertionError(f"the run does not end: {self.state}")

    # ---- commands ----------------------------------------------------------------------------

    def perform(self, command: Command) -> None:
        match command:
            case SendOrders(round=number, kind=kind, sites=sites, model=model):
                assert model.digest in self.disk
                assert sites
                self.mail += [((site, kind, number), model) for site in sites]
                self.feed(OrdersSent(at=self.at, round=number, kind=kind, sites=sites))
            case SetDeadline():
                self.deadline = command
            case Aggregate(round=number):
                model, memory = self.made(command)
                self.disk |= {model.digest, memory.digest}
                self.feed(ModelAggregated(at=self.at, round=number, model=model, state=memory))
            case AggregateMetrics(round=number):
                self.feed(MetricsAggregated(at=self.at, round=number, metrics=self.metrics(number)))
            case MeasureCentrally(round=number, model=model):
                assert model.digest in self.disk
                self.feed(CentralMeasured(at=self.at, round=number, metrics=self.metrics(number)))
            case RecordRound(drop=drop):
                self.disk -= {ref.digest for ref in drop}
            case Finish():
                assert self.state.phase == "done"

    def made(self, command: Aggregate) -> tuple[BlobRef, BlobRef]:
        """The model and memory that the taken updates make."""
        assert self.state.model is not None
        assert self.state.model.digest in self.disk
        updates = [
            (self.payload(taken.site, taken.order_round), taken.staleness)
            for taken in command.updates
        ]
        model = ref_of("model", self.state.model.digest, updates)
        before = self.state.strategy_state
        return model, ref_of("memory", before.digest if before else None, updates)

    def payload(self, site: str, number: int) -> str:
        """The digest of an update that was accepted."""
        found = self.answered[site, "train", number]
        assert isinstance(found, ReplyAccepted)
        assert found.update.payload is not None
        return found.update.payload.blob.digest

    def metrics(self, number: int) -> dict[str, float]:
        return {"loss": 1.0 / (1 + (number * 7) % 5)}

    def answer(self, key: Key, base: BlobRef) -> None:
        """A site answers: the same to the same order, refusals for a passing reason apart."""
        site, kind, number = key
        if key not in self.answered and self.chance.random() < self.refuse:
            self.feed(
                ReplyRefused(
                    at=self.at, round=number, kind=kind, site=site, code="transfer_failed",
                    detail="",
                )
            )  # fmt: skip
            return
        update = ref_of("update", site, number, base.digest)
        self.answered[key] = accepted(
            site, kind, number, at=self.at, blob=update, examples=1, metrics={}, seconds=0.1
        )
        self.feed(self.answered[key])

    # ---- what goes wrong ---------------------------------------------------------------------

    def crash(
        self, *, connected: tuple[str, ...] | None = None, at_event: int | None = None
    ) -> None:
        """Kill the process (with `at_event`, as it was when the journal was so long); resume it."""
        self.deaths += 1
        if at_event is not None:
            del self.journal[at_event:]
        self.todo, self.mail, self.deadline = [], [], None
        self.state = replay(self.journal)
        sites = self.plan.terms.sites if connected is None else connected
        self.feed(RunResumed(at=self.at, connected=sites))

    def lose_update(self) -> None:
        """An accepted update turns out to be unreadable after a crash."""
        keys = [(answer.site, answer.round) for answer in self.state.answers("train")]
        keys += [
            (waiting.answer.site, waiting.answer.round) for waiting in self.state.async_.waiting
        ]
        self.todo = []
        if keys:
            site, number = self.chance.choice(keys)
            self.feed(UpdateLost(at=self.at, round=number, site=site))
        self.crash()

    def lose_checkpoint(self) -> None:
        """The newest model turns out to be unreadable after a crash."""
        self.todo = []
        if len(self.state.finished) > 1 and self.state.phase != "done":
            back = self.state.finished[-2]
            self.feed(CheckpointLost(at=self.at, round=back.round, reason="its digest is wrong"))
        self.crash()

    def cut(self, site: str) -> None:
        """A site loses its connection; its messages are lost."""
        self.mail = [(key, base) for key, base in self.mail if key[0] != site]
        self.feed(SiteLost(at=self.at, site=site))

    def mend(self, site: str) -> None:
        """A site is back."""
        self.feed(SiteConnected(at=self.at, site=site))

    def reopen(self) -> None:
        """An operator lets an ended run go on."""
        self.feed(RunReopened(at=self.at, by="ana"))
        self.crash()
