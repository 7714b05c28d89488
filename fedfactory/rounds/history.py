"""What happened in a run, folded from its events: the rounds, who took part, how it ended. Pure.

The machine decides what an event means; here is kept what people want to read of it. `append` takes
one event at a time and costs the same in round 1000 as in round 1, so a live display can feed it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.privacy import PrivacyStanding
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import (
    CheckpointLost,
    Command,
    Event,
    ModelAggregated,
    ReplyAccepted,
    ReplyRefused,
    RunReopened,
    RunResumed,
    RunStarted,
    Status,
    UpdateLost,
)
from fedfactory.rounds.guarantees import with_standing
from fedfactory.rounds.machine import step
from fedfactory.rounds.parts import Part, async_parts, parts_of
from fedfactory.rounds.state import Judgement, RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round, or in async mode one model. Times are Unix seconds; `ended_at` None: under way.

    `parts` is who trained, `evaluations` who evaluated: None until evaluation is asked for.
    `metrics` are the sites', `central` the coordinator's own.
    """

    number: int
    began_at: float
    trained_at: float | None = None
    ended_at: float | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    evaluations: Mapping[str, Part] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    central: Mapping[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> WorkKind | None:
        """What sites are asked for now; None while the coordinator works."""
        if self.evaluations is not None:
            return "evaluate"
        return "train" if self.trained_at is None else None

    @property
    def shown_metrics(self) -> Mapping[str, float]:
        """The round's metrics: the sites', and what only the coordinator measured."""
        return {**self.central, **self.metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruption:
    """Something that broke into the run, and what was done about it. `at` is Unix seconds."""

    at: float
    round: int
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The run so far. `rounds` are finished, `current` is under way.

    `standings` is what each site said last of its privacy, also with answers that came too late,
    failed, or are of rounds that were made anew: what it spent stays spent.
    """

    state: RunState
    started_at: float = 0.0
    last_at: float = 0.0
    rounds: tuple[Round, ...] = ()
    current: Round | None = None
    interruptions: tuple[Interruption, ...] = ()
    standings: Mapping[str, PrivacyStanding] = field(default_factory=dict)

    @classmethod
    def new(cls) -> Self:
        """Return the history before the first event."""
        return cls(state=RunState.new())

    @property
    def plan(self) -> RunPlan | None:
        """What the run is to do; None before it began."""
        return self.state.plan

    @property
    def status(self) -> Status | None:
        """How the run ended; None while it lives."""
        return self.state.ended.status if self.state.ended is not None else None

    @property
    def reason(self) -> str:
        """Why it ended."""
        return self.state.ended.reason if self.state.ended is not None else ""

    @property
    def finished_model(self) -> BlobRef | None:
        """The model of the last finished round, or the initial one."""
        return self.state.finished[-1].model if self.state.finished else None

    @property
    def judgement(self) -> Judgement:
        """Which model is best so far."""
        return self.state.finished[-1].judgement if self.state.finished else Judgement()

    @property
    def never_took_part(self) -> tuple[str, ...]:
        """Sites of the plan that gave no update in any round."""
        return self.state.never_took_part


def append(history: History, event: Event) -> History:
    """Return the history after one more event. Events after the run's end change nothing."""
    return advance(history, event)[0]


def advance(history: History, event: Event) -> tuple[History, tuple[Command, ...]]:
    """Return the history after one more event, and what the machine asks for."""
    before = history.state
    state, commands = step(before, event)
    history = replace(history, state=state)
    if before.phase == "done" and not isinstance(event, RunReopened):
        return history, commands
    return _with_event(history, before, event), commands


def _with_event(history: History, before: RunState, event: Event) -> History:
    """Return the history with an event that its state includes already."""
    state = history.state
    history = replace(history, last_at=event.at)
    if isinstance(event, RunStarted):
        history = replace(history, started_at=event.at)
    if isinstance(event, ReplyAccepted | ReplyRefused):
        history = replace(history, standings=with_standing(history.standings, event))
    if told := _interruption(before, event):
        history = _interrupted(history, before, event, told)
    elif state.closed is not before.closed:
        history = _with_closed(history, before, event)
    return _with_current(history, before, event)


def _interruption(before: RunState, event: Event) -> str:
    """Return what to tell of an event that broke into the run; empty for any other."""
    match event:
        case RunResumed():
            if before.story[-1].startswith(RunReopened.__name__):
                return ""  # the reopened run's process, begun for it
            return f"the run's process died, and went on in round {before.round}"
        case RunReopened(by=by):
            assert before.ended is not None
            return f"{by} let it go on; it had {before.ended.status}: {before.ended.reason}"
        case UpdateLost(site=site):
            return f"the update of {site} could not be used any more; it was asked again"
        case CheckpointLost(round=back, reason=reason):
            where = f"round {back}" if back else "the initial model"
            return f"fell back to {where}: {reason}"
    return ""


def _interrupted(history: History, before: RunState, event: Event, told: str) -> History:
    entry = Interruption(at=event.at, round=before.round, told=told)
    history = replace(history, interruptions=(*history.interruptions, entry))
    if isinstance(event, RunReopened | CheckpointLost):
        last = history.state.finished[-1].round
        rounds = tuple(found for found in history.rounds if found.number <= last)
        return replace(history, rounds=rounds, current=None)
    return history


def _with_closed(history: History, before: RunState, event: Event) -> History:
    """Add the round that has just ended."""
    closed, current = history.state.closed, history.current
    assert closed is not None
    assert current is not None
    asynchronous = before.plan is not None and before.plan.is_async
    parts = current.parts
    if not asynchronous:
        parts = parts_of(closed.train)
    elif current.trained_at is None:  # the model and the end of its round came in one event
        parts = async_parts(before, closed.round, closed.entered)
    trained_at = event.at if isinstance(event, ModelAggregated) else current.trained_at
    ended = replace(
        current,
        parts=parts,
        evaluations=parts_of(closed.evaluate) if closed.evaluate else current.evaluations,
        trained_at=trained_at,
        ended_at=event.at,
        metrics=closed.metrics,
        central=closed.central,
    )
    return replace(history, rounds=(*history.rounds, ended), current=None)


def _with_current(history: History, before: RunState, event: Event) -> History:
    """Bring the round under way up to date."""
    state, current = history.state, history.current
    done = {found.number for found in history.rounds[-1:]}
    if state.plan is None or state.round in done:
        return replace(history, current=None)
    if current is None or current.number != state.round:
        current = Round(number=state.round, began_at=event.at)
    trained = isinstance(event, ModelAggregated) and event.round == state.round
    parts = current.parts
    if not state.plan.is_async:
        parts = parts_of(state.sync.train, before.sync.train, current.parts)
    elif trained:
        parts = async_parts(state, state.round, state.async_.entered)
    elif current.trained_at is None:
        parts = _async_so_far(state)
    evaluations = current.evaluations
    if state.sync.evaluate:
        evaluations = parts_of(state.sync.evaluate, before.sync.evaluate, evaluations or {})
    current = replace(
        current,
        parts=parts,
        trained_at=event.at if trained else current.trained_at,
        evaluations=evaluations,
        metrics=state.metrics,
        central=state.central,
    )
    return replace(history, current=current)


def _async_so_far(state: RunState) -> dict[str, Part]:
    """Return the parts in the model under way: who has an order out is asked."""
    found = async_parts(state, state.round, state.async_.waiting)
    busy = {order.site for order in state.async_.under_way}
    return {
        site: Part(status="asked") if part.status == "under_way" and site in busy else part
        for site, part in found.items()
    }
