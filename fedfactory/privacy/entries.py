"""What can happen in a site's ledger: its entries, in the order they were written. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.updates import Update
from fedfactory.privacy.accounting import Cost


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKey:
    """A run of a coordinator."""

    coordinator: str
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """`steps` of one cost."""

    cost: Cost
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """The first entry: which ledger this is, and where it may live."""

    identifier: str
    host: str
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """The administrator says that the ledger's host, file and clock are right as they are now."""

    host: str
    place: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageOpened:
    """A population gets a budget of its own, at a `delta` that never changes."""

    lineage: str
    delta: float
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAdmitted:
    """A run was admitted by its signed plan, all of it held until `expires_at` (Unix seconds).

    `unit` is what its epsilon is of: "row", or the site's column that names the units. `planned` is
    the training of all rounds, then, if the run evaluates, its evaluations.
    """

    run: RunKey
    terms_digest: str
    lineage: str
    unit: str
    planned: tuple[Charge, ...]
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReleased:
    """What a run holds and has not reserved returns."""

    run: RunKey
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLapsed:
    """No order of a run came for `silent_days`: what it holds and has not reserved returns.

    The run may be admitted again, for what was left of its plan, as long as that fits.
    """

    run: RunKey
    silent_days: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkReserved:
    """Work begins now: `charge` is spent from here on (None without differential privacy).

    `lineage` is that of the records it works on, None where it reads none. Finished work on a
    lineage without a charge voids the lineage's bound.
    """

    work: WorkKey
    lineage: str | None
    charge: Charge | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkRefunded:
    """The newest reservation of this work never began: scheduler or order, not data, stopped it."""

    work: WorkKey


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkCommitted:
    """Finished work, kept so that it is sent again and never done again."""

    work: WorkKey
    update: Update


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptSeen:
    """A coordinator sent a receipt of this ledger: from now on its orders must bring one."""

    coordinator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptWaived:
    """The administrator takes a coordinator's orders without a receipt until it sends one."""

    coordinator: str
    actor: str
    reason: str


Entry = (
    Created
    | Moved
    | ReceiptSeen
    | ReceiptWaived
    | LineageOpened
    | RunAdmitted
    | RunReleased
    | RunLapsed
    | WorkReserved
    | WorkRefunded
    | WorkCommitted
)
ENTRIES: Final[Mapping[str, type]] = {
    kind.__name__: kind
    for kind in (
        Created,
        Moved,
        ReceiptSeen,
        ReceiptWaived,
        LineageOpened,
        RunAdmitted,
        RunReleased,
        RunLapsed,
        WorkReserved,
        WorkRefunded,
        WorkCommitted,
    )
}

# A ledger outlives versions: the names of fields that entries of older ones have, and today's.
_RENAMED: Final[Mapping[str, tuple[str, str]]] = {"RunAdmitted": ("plan_digest", "terms_digest")}


def read_entry(kind: str, body: str) -> Entry:
    """Return the entry whose kind and JSON a ledger holds, also one that an older version wrote.

    Raises:
        KeyError: no such kind.
        ProtocolError: the text is no entry of this kind.
    """
    if kind in _RENAMED:
        old, new = (f'"{name}":' for name in _RENAMED[kind])
        body = body.replace(old, new)  # within a text value the quotation mark is escaped
    entry: Entry = from_json(ENTRIES[kind], body)
    return entry
