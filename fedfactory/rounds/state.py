"""What is known of a run while it lives: values only, made anew by every event. See machine.py.

Whoever takes a run up after a crash rebuilds what it held from here: the base model, the strategy's
memory and the calls made since, the accepted answers, the orders that are out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import (
    Event,
    Finish,
    RecordRound,
    ReplyAccepted,
    SendOrders,
    Taken,
)

Phase = Literal[
    "new",  # nothing has happened
    # Sync rounds: training -> aggregating -> evaluating -> summing, then the next round's training.
    "training",  # the chosen sites are asked for updates
    "aggregating",  # the strategy makes the round's model from the updates that are in
    "evaluating",  # sites are asked to evaluate the new model (async: the last model only)
    "summing",  # metrics are combined, or the central measurement is awaited
    # Async models: serving -> merging -> serving, each model from a buffer of updates.
    "serving",  # each site works on an order of its own; updates are collected in the buffer
    "merging",  # the buffer is full: the strategy makes a model, and its measurement is awaited
    "done",  # the run has ended; reopened, it begins its next round
]
# What an event came to. Callers act on it and do not derive it again from the state before.
Outcome = Literal[
    "applied",  # it did what its kind does
    "counted",  # an answer counts
    "refused",  # a refusal; the site may be asked again in this phase
    "gave_up",  # a refusal; the site is not asked again in this phase
    "late",  # an answer after its phase had closed: noted, counts for nothing
    "duplicate",  # a second answer, different from the first: noted, counts for nothing
    "repeated",  # a second answer, equal to the first: callers may drop event and state
    "ignored",  # about an update that the run no longer needs
]
SiteStatus = Literal["asked", "accepted", "refused", "no_answer", "not_selected", "not_needed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """One site's part in one phase of the current round.

    `answer` is what was accepted. `code` (a key of REFUSALS) and `detail` say why it gave nothing,
    or what its last failure was while it is asked again; `tries` counts these. `at` is the Unix
    time of its answer. `not_selected`: the round, or the strategy, did not want it.
    """

    status: SiteStatus
    code: str = ""
    detail: str = ""
    answer: ReplyAccepted | None = None
    tries: int = 0
    at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LateAnswer:
    """An answer that counted for nothing: a second one, or one after its phase had closed."""

    at: float
    round: int
    kind: WorkKind
    site: str
    why: Literal["duplicate", "late"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """An order of an async run that is out. `number` is its round, the site's own count of orders.

    `version` is the number of models made before it; `due_at` (Unix seconds) bounds it; `sent` once
    OrdersSent told so; `tries` counts failures since the site's last update.
    """

    site: str
    number: int
    model: BlobRef
    version: int
    due_at: float
    sent: bool
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """An accepted update of an async run that is in no model yet, and what it started from."""

    answer: ReplyAccepted
    model: BlobRef
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the metrics tell after a round.

    `value` is this round's, None if it was not measured. `best_round` and `best_model` had
    `best_value`, None before any. `mark` is the value from which the last movement is reckoned,
    `still` the rounds measured since without one.
    """

    value: float | None = None
    best_round: int = 0
    best_model: BlobRef | None = None
    best_value: float | None = None
    mark: float | None = None
    still: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A finished round that the run can fall back to; round 0 stands for the initial model.

    `state` is the strategy's memory as ModelAggregated told it; `planned` and `evaluated` are the
    calls made of the strategy after that and before the next round (see RunState). `entered` are
    the updates in the model of an async run.
    """

    round: int
    model: BlobRef
    state: BlobRef | None
    judgement: Judgement
    took_part: frozenset[str]
    planned: tuple[SendOrders, ...]
    evaluated: tuple[ReplyAccepted, ...]
    entered: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The last finished round as it was when it closed: for those who tell of it.

    `entered` are the updates in the model of an async run.
    """

    round: int
    train: Mapping[str, SiteRecord]
    evaluate: Mapping[str, SiteRecord]
    metrics: Mapping[str, float]
    central: Mapping[str, float]
    entered: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncState:
    """The phases in which all chosen sites are asked at once: training, and any evaluation.

    In async mode only the evaluation of the last model is one. `train` and `evaluate` are the
    current round's records by site; `reached` are those to which the open phase's orders went,
    `away` those asked that were not connected and have not been since; `attempt` counts the
    training phase's new beginnings, `overtime` says that it is past its deadline.
    """

    train: Mapping[str, SiteRecord] = field(default_factory=dict)
    evaluate: Mapping[str, SiteRecord] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()
    away: frozenset[str] = frozenset()
    attempt: int = 0
    overtime: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncState:
    """The orders and updates of an async run; empty in sync mode.

    `under_way` are the orders that are out, `given` counts each site's. `waiting` are the updates
    in no model, by arrival, `entered` those in the newest. `out` are sites left alone until they
    reconnect, and why (`out_detail`: what the coordinator found). `armed_for` is when the timer
    rings, `idle_until` how long the run waits while no order is out (Unix seconds).
    """

    under_way: tuple[UnderWay, ...] = ()
    given: Mapping[str, int] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    entered: tuple[Waiting, ...] = ()
    out: Mapping[str, str] = field(default_factory=dict)
    out_detail: Mapping[str, str] = field(default_factory=dict)
    armed_for: float | None = None
    idle_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run between two events: what both modes have, and what is of one alone.

    `outcome` is what the last event came to. `model` is the newest shared model, `version` its
    number (0: the initial one) and `strategy_state` what the strategy remembers with it; `finished`
    the rounds that can be fallen back to, newest last; `stored` every model and memory that was
    made and not dropped. `planned` are the first sendings (again=False) since the last
    ModelAggregated, which is when the strategy was asked to plan; `evaluated` the evaluations it
    was given since then. `offline` sites are not connected; `left` ones will not come back (why: a
    key of REFUSALS); `took_part` have an update in a model. `examples`, `gave` and `missed` are
    each site's last known size and its record. `recorded` is the last RecordRound, `closed` the
    round that it ended. `late` holds the answers since the round began that counted for nothing.
    `taking` are the updates that the aggregate under way is made from. `stopping` is the reason of
    a stop after the round. `story` names the last few events; `ended` is the Finish.
    """

    phase: Phase = "new"
    outcome: Outcome = "applied"
    plan: RunPlan | None = None
    round: int = 0
    model: BlobRef | None = None
    version: int = 0
    strategy_state: BlobRef | None = None
    finished: tuple[Finished, ...] = ()
    stored: tuple[BlobRef, ...] = ()
    planned: tuple[SendOrders, ...] = ()
    evaluated: tuple[ReplyAccepted, ...] = ()
    offline: frozenset[str] = frozenset()
    left: Mapping[str, str] = field(default_factory=dict)
    took_part: frozenset[str] = frozenset()
    examples: Mapping[str, int] = field(default_factory=dict)
    gave: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    recorded: RecordRound | None = None
    closed: Closed | None = None
    late: tuple[LateAnswer, ...] = ()
    taking: tuple[Taken, ...] = ()
    awaits_metrics: bool = False
    awaits_central: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)
    central: Mapping[str, float] = field(default_factory=dict)
    stopping: str | None = None
    ended: Finish | None = None
    story: tuple[str, ...] = ()
    sync: SyncState = field(default_factory=SyncState)
    async_: AsyncState = field(default_factory=AsyncState)

    @classmethod
    def new(cls) -> Self:
        """Return the state before the first event."""
        return cls()

    def with_sync(self, **changes: Any) -> Self:
        """Return the state with fields of `sync` changed."""
        return replace(self, sync=replace(self.sync, **changes))

    def with_async(self, **changes: Any) -> Self:
        """Return the state with fields of `async_` changed."""
        return replace(self, async_=replace(self.async_, **changes))

    def records(self, kind: WorkKind) -> Mapping[str, SiteRecord]:
        """The current round's records of one kind of work, by site."""
        return self.sync.train if kind == "train" else self.sync.evaluate

    def sites(self, kind: WorkKind, status: SiteStatus) -> tuple[str, ...]:
        """The sites whose record of this kind has this status, sorted."""
        return tuple(sorted(s for s, r in self.records(kind).items() if r.status == status))

    def answers(self, kind: WorkKind) -> tuple[ReplyAccepted, ...]:
        """The accepted answers of the current round (sync: to be offered again), by site."""
        records = self.records(kind)
        found = (records[site].answer for site in self.sites(kind, "accepted"))
        return tuple(answer for answer in found if answer is not None)

    def awaits(self, round: int, kind: WorkKind, site: str) -> bool:  # noqa: A002
        """Whether an answer of `site` to its order of (round, kind) would count."""
        if kind == "train" and self.phase in ("serving", "merging"):
            return any((o.site, o.number) == (site, round) for o in self.async_.under_way)
        record = self.records(kind).get(site)
        return (
            self.phase == ("training" if kind == "train" else "evaluating")
            and self.round == round
            and record is not None
            and record.status == "asked"
        )

    @property
    def never_took_part(self) -> tuple[str, ...]:
        """The plan's sites that gave no accepted update in any round so far, sorted."""
        sites = set(self.plan.terms.sites) if self.plan is not None else set()
        waiting = {update.answer.site for update in self.async_.waiting}
        return tuple(sorted(sites - self.took_part - waiting - {*self.sites("train", "accepted")}))


class MachineError(AssertionError):
    """An event that makes no sense now: a bug in the caller, told with the story so far."""

    def __init__(self, state: RunState, event: Event, why: str) -> None:
        story = "; ".join(state.story) or "nothing"
        super().__init__(
            f"{told(event)} makes no sense in phase '{state.phase}' of round {state.round}:"
            f" {why}. The story so far: {story}"
        )


def told(event: Event) -> str:
    """Name an event in a few words: its type and what it is about."""
    about = (getattr(event, name, None) for name in ("round", "kind", "site", "code", "reason"))
    return " ".join([type(event).__name__, *(str(a) for a in about if a not in (None, ""))])
