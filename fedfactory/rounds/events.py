"""What can happen in a run, and what the machine can ask for. Values only; see machine.py.

Events are written to the run's journal before the machine sees them, so a run replays from it.
Times (`at`, Unix seconds) arrive in events; nothing here reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.privacy import PrivacySpent, PrivacyStanding
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.contracts.updates import Payload

Status = Literal["completed", "failed", "stopped"]


# ---- events: what happened ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first event of a run: its initial model, and which sites are connected."""

    at: float
    plan: RunPlan
    model: BlobRef
    connected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersSent:
    """Orders of one kind went to `sites` (a first sending, or again to a site that came back)."""

    at: float
    round: int
    kind: WorkKind
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyAccepted:
    """A site's answer arrived, its bytes whole and durable, its form and values checked.

    `seconds` is the site's own working time. `payload` is None for `evaluate`. `round` is the
    order's: in async mode the site's own count of orders. `standing` is what the site says holds
    for the run so far, None without differential privacy.
    """

    at: float
    round: int
    kind: WorkKind
    site: str
    order_digest: str
    payload: Payload | None
    examples: int | None
    metrics: Mapping[str, float]
    seconds: float
    privacy: PrivacySpent | None
    standing: PrivacyStanding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRefused:
    """A site refused, or its answer was not taken. `code` is a key of REFUSALS.

    `detail` is the coordinator's own finding (never a site's text), or empty. `standing` is that of
    a run whose work was charged and failed.
    """

    at: float
    round: int
    kind: WorkKind
    site: str
    code: str
    detail: str
    standing: PrivacyStanding | None = None


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
class SiteLeft:
    """A site will not come back to this run: `code` (of REFUSALS) says why, as in 'revoked'."""

    at: float
    site: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The deadline set for (round, kind) passed."""

    at: float
    round: int
    kind: WorkKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAggregated:
    """The strategy made the round's model out of the accepted updates; both are durable.

    `state` is what the strategy remembers from now on (None: nothing).
    """

    at: float
    round: int
    model: BlobRef
    state: BlobRef | None


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
class CentralMeasured:
    """The coordinator measured the round's model on its public set."""

    at: float
    round: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """Somebody asked the run to stop. The last finished round's model is kept.

    `after_round` lets the round under way finish first; a second request does not.
    """

    at: float
    reason: str
    after_round: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """The run's process is here again after it died. `connected` are the sites that are here."""

    at: float
    connected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReopened:
    """An operator lets an ended run go on from its last finished round. `by` is their name."""

    at: float
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLost:
    """An update that had been accepted can no longer be read: its site is asked again."""

    at: float
    round: int
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLost:
    """The newest model or strategy state cannot be read: the run falls back to the one before.

    `round` is the finished round that it falls back to (0: the initial model).
    """

    at: float
    round: int
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
    | SiteLeft
    | DeadlinePassed
    | ModelAggregated
    | AggregationFailed
    | MetricsAggregated
    | CentralMeasured
    | StopRequested
    | RunResumed
    | RunReopened
    | UpdateLost
    | CheckpointLost
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
class Taken:
    """An accepted update that enters an aggregate.

    `order_round` is its order's `round`; `staleness` the number of models made since the one it
    started from (0 in sync mode).
    """

    site: str
    order_round: int
    staleness: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Make the round's model from `updates` (by site, then order: the canonical order).

    Answer with ModelAggregated or AggregationFailed.
    """

    round: int
    updates: tuple[Taken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateMetrics:
    """Combine the accepted evaluations of `sites`; answer with MetricsAggregated."""

    round: int
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureCentrally:
    """Measure the round's new model on the public set; answer with CentralMeasured."""

    round: int
    model: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRound:
    """The round is over: release its updates and what only it needed, delete `drop`.

    `drop` are models and strategy states of earlier rounds that are no longer kept.
    """

    round: int
    drop: tuple[BlobRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The run is over. `model` is the model to keep (the initial one if no round finished)."""

    status: Status
    reason: str
    model: BlobRef


Command = (
    SendOrders
    | SetDeadline
    | Aggregate
    | AggregateMetrics
    | MeasureCentrally
    | RecordRound
    | Finish
)
