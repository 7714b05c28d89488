"""What can happen in a run, and what the machine can ask for. Values only; see machine.py.

Events are written to the run's journal before the machine sees them, so a run replays from it.
Times (`at`, Unix seconds) arrive in events; nothing here reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedfactory.contracts.bounds import Count, Norm, Seconds, SharedMetrics, UnixTime
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.privacy import PrivacyStanding
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.contracts.updates import Update

Status = Literal["completed", "failed", "stopped"]


# ---- events: what happened ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first event of a run: its plan, and which sites are connected."""

    at: UnixTime
    plan: RunPlan
    connected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrdersSent:
    """Orders of one kind went to `sites` (a first sending, or again to a site that came back)."""

    at: UnixTime
    round: Count
    kind: WorkKind
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyAccepted:
    """A site's update arrived, its bytes whole and durable, its form and values checked.

    `norm_l2` is the update's L2 norm as the coordinator computed it and checked it against the
    signed bound; None for `evaluate`. `standing` is what the site says holds for the run so far,
    None without differential privacy.
    """

    at: UnixTime
    update: Update
    norm_l2: Norm | None
    standing: PrivacyStanding | None = None

    def __post_init__(self) -> None:
        if (self.norm_l2 is None) != (self.update.payload is None):
            raise ProtocolError("ReplyAccepted.norm_l2: present exactly when there is a payload")

    @property
    def round(self) -> int:
        """The order's round: in async mode the site's own count of orders."""
        return self.update.work.round

    @property
    def kind(self) -> WorkKind:
        """What the site was asked for."""
        return self.update.work.kind

    @property
    def site(self) -> str:
        """The site that gives the update."""
        return self.update.work.site


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRefused:
    """A site refused, or its answer was not taken. `code` is a key of REFUSALS.

    `detail` is the coordinator's own finding (never a site's text), or empty. `standing` is that of
    a run whose work was charged and failed.
    """

    at: UnixTime
    round: Count
    kind: WorkKind
    site: str
    code: str
    detail: str
    standing: PrivacyStanding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConnected:
    """A site's agent is connected (again)."""

    at: UnixTime
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLost:
    """A site's agent is no longer connected."""

    at: UnixTime
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLeft:
    """A site will not come back to this run: `code` (of REFUSALS) says why, as in 'revoked'."""

    at: UnixTime
    site: str
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """The deadline set for (round, kind) passed."""

    at: UnixTime
    round: Count
    kind: WorkKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAggregated:
    """The strategy made the round's model out of the accepted updates; both are durable.

    `state` is what the strategy remembers from now on (None: nothing).
    """

    at: UnixTime
    round: Count
    model: BlobRef
    state: BlobRef | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationFailed:
    """The strategy could not make a model (too few replies for it, a non-finite result)."""

    at: UnixTime
    round: Count
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsAggregated:
    """The round's metrics of the shared model, from the sites' evaluations."""

    at: UnixTime
    round: Count
    metrics: SharedMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralMeasured:
    """The coordinator measured the round's model on its public set."""

    at: UnixTime
    round: Count
    metrics: SharedMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """Somebody asked the run to stop. The last finished round's model is kept.

    `after_round` lets the round under way finish first; a second request does not.
    """

    at: UnixTime
    reason: str
    after_round: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """The run's process is here again after it died. `connected` are the sites that are here."""

    at: UnixTime
    connected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReopened:
    """An operator lets an ended run go on from its last finished round. `by` is their name."""

    at: UnixTime
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLost:
    """An update that had been accepted can no longer be read: its site is asked again."""

    at: UnixTime
    round: Count
    site: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRefused:
    """An accepted update could not be folded: it counts as its site's refusal.

    `round` is its order's. `detail` is the coordinator's own finding.
    """

    at: UnixTime
    round: Count
    site: str
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointLost:
    """The newest model or strategy state cannot be read: the run falls back to the one before.

    `round` is the finished round that it falls back to (0: the initial model).
    """

    at: UnixTime
    round: Count
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed:
    """Something outside the rounds broke (a full disk). The run ends."""

    at: UnixTime
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
    | UpdateRefused
    | CheckpointLost
    | RunFailed
)


# ---- commands: what to do -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SendOrders:
    """Send orders of `kind` for `round`, from `model`, to `sites`; answer with OrdersSent.

    `again` means that the sites had been asked before and came back without having answered.
    """

    round: Count
    kind: WorkKind
    sites: tuple[str, ...]
    model: BlobRef
    again: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDeadline:
    """Feed DeadlinePassed(round, kind) `after_s` seconds from now, replacing any earlier one."""

    round: Count
    kind: WorkKind
    after_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """An accepted update that enters an aggregate.

    `order_round` is its order's `round`; `staleness` the number of models made since the one it
    started from (0 in sync mode).
    """

    site: str
    order_round: Count
    staleness: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Make the round's model from `updates` (by site, then order: the canonical order).

    Answer with ModelAggregated or AggregationFailed.
    """

    round: Count
    updates: tuple[Taken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateMetrics:
    """Combine the accepted evaluations of `sites`; answer with MetricsAggregated."""

    round: Count
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureCentrally:
    """Measure the round's new model on the public set; answer with CentralMeasured."""

    round: Count
    model: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRound:
    """The round is over: release its updates and what only it needed, delete `drop`.

    `drop` are models and strategy states of earlier rounds that are no longer kept.
    """

    round: Count
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
