"""What is known of a run while it lives: values only, made anew by every event. See machine.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.updates import Payload
from fedfactory.rounds.events import Event, Finish, RunPlan

Phase = Literal["new", "training", "aggregating", "evaluating", "summing", "done"]
SiteStatus = Literal["asked", "accepted", "refused", "no_answer", "not_selected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """One site's part in one phase of the current round.

    `code` (a key of REFUSALS) and `detail` say why it gave nothing. `seconds` is the site's own
    working time, `at` the Unix time of its answer. `not_selected`: the strategy did not want it.
    """

    status: SiteStatus
    code: str = ""
    detail: str = ""
    payload: Payload | None = None
    examples: int | None = None
    metrics: Mapping[str, float] | None = None
    seconds: float | None = None
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
class RunState:
    """A run between two events.

    `model` is the shared model that orders name; `finished_model` the one of the last finished
    round, which a run that ends early keeps. `train` and `evaluate` are the current round's
    records by site; `reached` are the sites to which the open phase's orders went; `offline` are
    those last heard of as lost; `took_part` gave at least one accepted update in any round;
    `late` holds the answers since the round began that came too late or twice. `story` tells the
    last few events; `ended` is the Finish command once there was one.
    """

    phase: Phase = "new"
    plan: RunPlan | None = None
    round: int = 0
    model: BlobRef | None = None
    finished_model: BlobRef | None = None
    train: Mapping[str, SiteRecord]
    evaluate: Mapping[str, SiteRecord]
    reached: frozenset[str] = frozenset()
    offline: frozenset[str] = frozenset()
    took_part: frozenset[str] = frozenset()
    late: tuple[LateAnswer, ...] = ()
    ended: Finish | None = None
    story: tuple[str, ...] = ()

    @classmethod
    def new(cls) -> Self:
        """Return the state before the first event."""
        return cls(train={}, evaluate={})

    def records(self, kind: WorkKind) -> Mapping[str, SiteRecord]:
        """The current round's records of one kind of work, by site."""
        return self.train if kind == "train" else self.evaluate

    def sites(self, kind: WorkKind, status: SiteStatus) -> tuple[str, ...]:
        """The sites whose record of this kind has this status, sorted."""
        return tuple(sorted(s for s, r in self.records(kind).items() if r.status == status))

    def awaits(self, round: int, kind: WorkKind, site: str) -> bool:  # noqa: A002
        """Whether an answer of `site` to (round, kind) would count."""
        open_phase = "training" if kind == "train" else "evaluating"
        record = self.records(kind).get(site)
        return (
            self.phase == open_phase
            and self.round == round
            and record is not None
            and record.status == "asked"
        )

    @property
    def never_took_part(self) -> tuple[str, ...]:
        """The plan's sites that gave no accepted update in any round so far, sorted."""
        sites = self.plan.sites if self.plan is not None else ()
        return tuple(sorted(set(sites) - self.took_part))


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
