"""What happened in a run, folded from its events: the rounds, who took part, how it ended. Pure.

`append` takes one event at a time and costs the same in round 1000 as in round 1, so a live display
can feed it. An answer counts once: later ones for the same (round, site) change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.privacy import PrivacySpent
from fedfactory.contracts.refusals import REFUSALS
from fedfactory.rounds.events import (
    AggregationFailed,
    DeadlinePassed,
    Event,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunFailed,
    RunPlan,
    RunStarted,
    SiteConnected,
    SiteLost,
    Status,
    StopRequested,
)

PartStatus = Literal["asked", "took_part", "refused", "no_answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One site's part in one phase of a round. `seconds` is its own working time."""

    status: PartStatus
    examples: int | None = None
    seconds: float | None = None
    reason: str | None = None
    privacy: PrivacySpent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round. Times are Unix seconds; `ended_at` is None while it runs.

    `parts` is who trained, `evaluations` who evaluated: None until evaluation is asked for.
    """

    number: int
    began_at: float
    trained_at: float | None = None
    ended_at: float | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    evaluations: Mapping[str, Part] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> WorkKind | None:
        """What sites are asked for now; None while the coordinator aggregates."""
        if self.evaluations is not None:
            return "evaluate"
        return "train" if self.trained_at is None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The run so far. `rounds` are finished, `current` is under way."""

    plan: RunPlan | None = None
    started_at: float = 0.0
    status: Status | None = None
    reason: str = ""
    model: BlobRef | None = None
    finished_model: BlobRef | None = None
    rounds: tuple[Round, ...] = ()
    current: Round | None = None
    offline: frozenset[str] = frozenset()
    last_at: float = 0.0

    @classmethod
    def new(cls) -> Self:
        """Return the history before the first event."""
        return cls()

    @property
    def never_took_part(self) -> tuple[str, ...]:
        """Sites of the plan that gave no update in any round."""
        rounds = (*self.rounds, self.current) if self.current else self.rounds
        took = {s for r in rounds for s, p in r.parts.items() if p.status == "took_part"}
        return tuple(s for s in (self.plan.sites if self.plan else ()) if s not in took)


def append(history: History, event: Event) -> History:
    """Return the history after one more event. Events after the end change nothing."""
    if history.status is not None:
        return history
    history = replace(history, last_at=event.at)
    after: History = _FOLD[type(event)](history, event)
    return after


def _started(history: History, event: RunStarted) -> History:
    return replace(
        history,
        plan=event.plan,
        started_at=event.at,
        model=event.model,
        finished_model=event.model,
    )


def _sent(history: History, event: OrdersSent) -> History:
    current = history.current
    if current is None or event.round > current.number:
        if current is not None and current.trained_at is not None:  # its metrics never came
            history = _end_round(history, event.at)
        current = Round(number=event.round, began_at=event.at)
    known = _phase(current, event.kind)
    asked = {site: _ASKED for site in event.sites if site not in known}
    return _with_parts(history, current, event.kind, {**known, **asked})


def _accepted(history: History, event: ReplyAccepted) -> History:
    part = Part(
        status="took_part",
        examples=event.examples,
        seconds=event.seconds,
        privacy=event.privacy,
    )
    return _answer(history, event, part)


def _refused(history: History, event: ReplyRefused) -> History:
    reason = REFUSALS[event.code] + (f" ({event.detail})" if event.detail else "")
    return _answer(history, event, Part(status="refused", reason=reason))


def _answer(history: History, event: ReplyAccepted | ReplyRefused, part: Part) -> History:
    """Count an answer to what is asked now: once, and none that comes late."""
    current = history.current
    if current is None or (event.round, event.kind) != (current.number, current.kind):
        return history
    known = _phase(current, event.kind)
    if known.get(event.site, _ASKED).status != "asked":
        return history
    return _with_parts(history, current, event.kind, {**known, event.site: part})


def _deadline(history: History, event: DeadlinePassed) -> History:
    current = history.current
    if current is None or (event.round, event.kind) != (current.number, current.kind):
        return history
    parts = {
        site: _silent(site, history.offline) if part.status == "asked" else part
        for site, part in _phase(current, event.kind).items()
    }
    return _with_parts(history, current, event.kind, parts)


def _phase(current: Round, kind: WorkKind) -> Mapping[str, Part]:
    return current.parts if kind == "train" else current.evaluations or {}


def _with_parts(
    history: History, current: Round, kind: WorkKind, parts: Mapping[str, Part]
) -> History:
    if kind == "train":
        return replace(history, current=replace(current, parts=parts))
    history = replace(history, current=replace(current, evaluations=parts))
    if any(part.status in ("asked", "took_part") for part in parts.values()):
        return history
    # Nobody evaluated: no MetricsAggregated will come, the machine has closed the round.
    return _end_round(history, history.last_at)


def _silent(site: str, offline: frozenset[str]) -> Part:
    reason = REFUSALS["offline" if site in offline else "no_answer"]
    return Part(status="no_answer", reason=reason)


def _aggregated(history: History, event: ModelAggregated) -> History:
    current, plan = history.current, history.plan
    assert current is not None
    assert plan is not None
    history = replace(history, model=event.model, current=replace(current, trained_at=event.at))
    return history if plan.evaluate else _end_round(history, event.at)


def _metrics(history: History, event: MetricsAggregated) -> History:
    assert history.current is not None
    current = replace(history.current, metrics=event.metrics)
    return _end_round(replace(history, current=current), event.at)


def _end_round(history: History, at: float) -> History:
    """The round counts: its model is the one to keep, and the last round ends the run."""
    history = replace(_close(history, at), finished_model=history.model)
    if history.plan is not None and len(history.rounds) == history.plan.rounds:
        return replace(history, status="completed", reason="every round is finished")
    return history


def _close(history: History, at: float) -> History:
    current = history.current
    if current is None:
        return history
    ended = replace(current, ended_at=at)
    return replace(history, rounds=(*history.rounds, ended), current=None)


def _connected(history: History, event: SiteConnected) -> History:
    return replace(history, offline=history.offline - {event.site})


def _lost(history: History, event: SiteLost) -> History:
    return replace(history, offline=history.offline | {event.site})


def _failed(history: History, event: RunFailed | AggregationFailed) -> History:
    return replace(history, status="failed", reason=event.reason)


def _stopped(history: History, event: StopRequested) -> History:
    return replace(history, status="stopped", reason=event.reason)


_ASKED: Final = Part(status="asked")
_FOLD: Final[Mapping[type, Any]] = {
    RunStarted: _started,
    OrdersSent: _sent,
    ReplyAccepted: _accepted,
    ReplyRefused: _refused,
    DeadlinePassed: _deadline,
    ModelAggregated: _aggregated,
    MetricsAggregated: _metrics,
    AggregationFailed: _failed,
    SiteConnected: _connected,
    SiteLost: _lost,
    StopRequested: _stopped,
    RunFailed: _failed,
}
