"""What operators ask of a coordinator over the gateway, and its answers: values, sent as JSON.

The methods of the service Operations (rpc/service.py names each with the roles that may call it);
who is who is in membership.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from fedfactory.contracts.bounds import Count, Ordinal, UnixTime
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.questions import SignedLogsRequest, SiteLogs

RunStatus = Literal["queued", "running", "suspended", "completed", "failed", "stopped"]
StopMode = Literal["after_round", "now"]
# The predicate of a sentence about a run, by status.
STANDS: Final[Mapping[str, str]] = {
    "queued": "is queued",
    "running": "is running",
    "suspended": "is suspended",
    "completed": "has completed",
    "failed": "has failed",
    "stopped": "was stopped",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What speaks against a site's part in a run: a key of REFUSALS and its sentence."""

    site: str
    code: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What became of a submitted plan. `run_id` is None if it is not taken; `reason` says why.

    `findings` names the sites that cannot take part now.
    """

    run_id: str | None
    reason: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsRequest:
    """The coordinator's runs, newest first; `limit` of them."""

    limit: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run in a list. Times are Unix seconds; `round` is the one under way or the last.

    `damage` says what of its folder cannot be read; empty if nothing is known to be damaged.
    """

    run_id: str
    task: str
    strategy: str
    operator: str
    status: RunStatus
    round: Count
    rounds: Ordinal
    sites: tuple[str, ...]
    submitted_at: UnixTime
    ended_at: UnixTime | None
    reason: str
    damage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """A list of runs. `left_out` is a sentence for each run whose folder cannot be opened."""

    runs: tuple[RunRow, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequest:
    """The events of a run from number `after` on (0: all).

    With `follow` the stream ends when the run does; without, after what there is now (with the
    summary, if the run has ended).
    """

    run_id: str
    after: Count
    follow: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """One piece of a watch: an event's line as rounds/log.py writes it, or at the end the summary.

    `number` is what to ask for `after` it to go on from here. `status` is the run's.
    """

    number: Count
    status: RunStatus
    event: str | None
    summary: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequest:
    """Stop a run: `after_round` finishes the round under way, `now` leaves it."""

    run_id: str
    mode: StopMode


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequest:
    """Let a suspended, failed or stopped run go on from its last finished round."""

    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsOfSite:
    """What a site lets out of its record of a run."""

    signed: SignedLogsRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsGiven:
    """What the site let out; None if it is not connected or did not answer."""

    logs: SiteLogs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A run's model of a round, None for the one that the run keeps."""

    run_id: str
    round: Count | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFound:
    """Where to download it (Gateway.Download), and which rounds' models are still kept."""

    model: BlobRef | None
    round: Count | None
    kept: tuple[Count, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """It was done; `message` says what, in one sentence."""

    message: str
