"""What a coordinator may ask of a site outside the rounds, and what the site answers. Values only.

A question travels with the doorbell and is answered at once, without work: would the site take part
in a run, and what does it let out of its record of a run. The site answers by codes and figures,
never by free text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedfactory.contracts.bounds import Seconds, UnixTime, Whole
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.plans import Anchor, Signature, SignedTerms
from fedfactory.contracts.refusals import REFUSALS


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsRequest:
    """An operator wants what a site lets out of its record of a run; good until `not_after`."""

    coordinator: str
    run_id: str
    site: str
    nonce: str
    not_after: UnixTime


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedLogsRequest:
    """The wish under its operator's signature."""

    request: LogsRequest
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Exactly one of: would you take part in the run `signed`; what do you let out as `logs`.

    `receipt` is the last anchor that the coordinator holds of this site, as with an order.
    """

    site: str
    signed: SignedTerms | None
    receipt: Anchor | None
    logs: SignedLogsRequest | None

    def __post_init__(self) -> None:
        if (self.signed is None) == (self.logs is None):
            raise ProtocolError("Query: expected exactly one of signed, logs")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedQuery:
    """A question under the coordinator's signature, as an order is."""

    query: Query
    signature: Signature


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """Whether a site would take part: `code` is a key of REFUSALS, or empty if it would.

    `version` is fedfactory's at the site.
    """

    code: str
    version: str

    def __post_init__(self) -> None:
        if self.code and self.code not in REFUSALS:
            raise ProtocolError("Preflight.code: not a known code")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One thing that happened at a site: when (Unix seconds), which work, and how it went.

    `outcome` is 'begun', 'update', or a key of REFUSALS; `seconds` is the work's duration, whole
    ones under differential privacy, None where it has not ended.
    """

    at: UnixTime
    round: Whole
    kind: WorkKind
    outcome: str
    seconds: Seconds | None

    def __post_init__(self) -> None:
        if self.outcome not in ("begun", "update", *REFUSALS):
            raise ProtocolError("LogLine.outcome: not a known outcome")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteLogs:
    """What a site lets out of its record of a run, oldest first.

    `status` says why there is nothing: the site's policy lets none out, or it does not believe the
    question.
    """

    status: Literal["let_out", "withheld", "not_authorised"]
    lines: tuple[LogLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to a question: exactly one of both."""

    preflight: Preflight | None
    logs: SiteLogs | None

    def __post_init__(self) -> None:
        if (self.preflight is None) == (self.logs is None):
            raise ProtocolError("Answer: expected exactly one of preflight, logs")
