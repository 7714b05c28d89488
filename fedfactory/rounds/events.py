"""What can happen in a run, and what the machine can ask for. Values only; see machine.py.

Events are appended to events.jsonl as they are fed to the machine, so a run replays from its file.
Times (`at`, Unix seconds) arrive in events; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.privacy import PrivacyPlan, PrivacySpent
from fedfactory.contracts.updates import Payload

Status = Literal["completed", "failed", "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run is to do: fixed before its first round.

    `sites` are all enrolled for the run; `quorum` is the number that must answer `train` for a
    round to count; `deadline_s` bounds each phase (train, evaluate) of a round in seconds.
    `privacy` is what the run asks of every site, None for none.
    """

    run_id: str
    task: str
    strategy: str
    seed: int
    rounds: int
    sites: tuple[str, ...]
    quorum: int
    deadline_s: float
    evaluate: bool
    privacy: PrivacyPlan | None


# ---- events: what happened ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first event of a run. `model` is the initial model."""

    at: float
    plan: RunPlan
    model: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersSent:
    """Orders of one kind went to `sites` (a first sending, or again to a site that came back)."""

    at: float
    round: int
    kind: WorkKind
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyAccepted:
    """A site's answer arrived, its bytes whole, its form and values checked.

    `seconds` is the site's own working time. `payload` is None for `evaluate`.
    """

    at: float
    round: int
    kind: WorkKind
    site: str
    payload: Payload | None
    examples: int | None
    metrics: Mapping[str, float]
    seconds: float
    privacy: PrivacySpent | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRefused:
    """A site refused, or its answer was not taken. `code` is a key of REFUSALS.

    `detail` is the coordinator's own finding (never a site's text), or empty.
    """

    at: float
    round: int
    kind: WorkKind
    site: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConnected:
    """A site's agent is connected (again)."""

    at: float
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLost:
    """A site's agent is no longer connected."""

    at: float
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The deadline set for (round, kind) passed."""

    at: float
    round: int
    kind: WorkKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAggregated:
    """The strategy made the round's model out of the accepted updates."""

    at: float
    round: int
    model: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationFailed:
    """The strategy could not make a model (too few replies for it, a non-finite result)."""

    at: float
    round: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsAggregated:
    """The round's metrics of the shared model, from the sites' evaluations."""

    at: float
    round: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """Somebody asked the run to stop. The last finished round's model is kept."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    """Something outside the rounds broke (SuperLink died, disk full). The run ends."""

    at: float
    reason: str


Event = (
    RunStarted
    | OrdersSent
    | ReplyAccepted
    | ReplyRefused
    | SiteConnected
    | SiteLost
    | DeadlinePassed
    | ModelAggregated
    | AggregationFailed
    | MetricsAggregated
    | StopRequested
    | RunFailed
)


# ---- commands: what to do -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOrders:
    """Send orders of `kind` for `round`, from `model`, to `sites`; answer with OrdersSent.

    `again` means that the sites had been asked before and came back without having answered.
    """

    round: int
    kind: WorkKind
    sites: tuple[str, ...]
    model: BlobRef
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDeadline:
    """Feed DeadlinePassed(round, kind) `after_s` seconds from now, replacing any earlier one."""

    round: int
    kind: WorkKind
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Make the round's model from the accepted updates of `sites` (canonical order).

    Answer with ModelAggregated or AggregationFailed.
    """

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateMetrics:
    """Combine the accepted evaluations of `sites`; answer with MetricsAggregated."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRound:
    """The round is over: write its line to metrics.jsonl, release its blobs."""

    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The run is over. `model` is the model to keep (the initial one if no round finished)."""

    status: Status
    reason: str
    model: BlobRef


Command = SendOrders | SetDeadline | Aggregate | AggregateMetrics | RecordRound | Finish
