"""A site's privacy budget as a fold over its ledger's entries. Pure: no clock, no file, no chance.

A lineage is a population under the administrator's name; all runs on it share one history. A run is
admitted with its whole plan held, so that runs side by side cannot oversubscribe. Work reserves its
steps before data is touched, and every reservation must keep the caps as they are then; what was
reserved stays spent unless it provably never began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from fedfactory.contracts.orders import WorkKey, WorkKind
from fedfactory.privacy.accounting import Accountant, Cost, Limits, epsilon_of, fits, joined
from fedfactory.privacy.entries import (
    Charge,
    Created,
    Entry,
    LineageOpened,
    Moved,
    ReceiptSeen,
    ReceiptWaived,
    RunAdmitted,
    RunKey,
    RunLapsed,
    RunReleased,
    WorkCommitted,
    WorkRefunded,
    WorkReserved,
)

DAY_S: Final = 24 * 3600.0


@dataclass(slots=True)
class Run:
    """One run's part of a lineage."""

    lineage: str
    unit: str
    terms_digest: str
    planned: tuple[Charge, ...]
    expires_at: float
    active_at: float = 0.0  # when it was admitted, or last had an order here; Unix seconds
    spent: dict[Cost, int] = field(default_factory=dict)
    released: bool = False
    lapsed: bool = False

    def held(self, now: float) -> dict[Cost, int]:
        """Return what is planned and not yet reserved; nothing once released, lapsed, expired."""
        return {} if self.released or self.lapsed or now > self.expires_at else self.left()

    def left(self) -> dict[Cost, int]:
        """Return what is planned and not yet reserved."""
        planned = joined(*({charge.cost: charge.steps} for charge in self.planned))
        left = {cost: steps - self.spent.get(cost, 0) for cost, steps in planned.items()}
        return {cost: steps for cost, steps in left.items() if steps > 0}


WorkName = tuple[str, str, int, WorkKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One unit of work: the order it is for, its reservations that stand, whether it is done.

    `refundable` says whether the newest reservation may still be taken back: those before it were
    followed by another attempt, so they began. `lineage` is the newest's.
    """

    order_digest: str
    lineage: str | None = None
    reservations: tuple[tuple[str, Charge] | None, ...] = ()
    refundable: bool = False
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unprotected:
    """What was done on a lineage's records without differential privacy: it has no bound any more.

    `updates` counts finished updates and evaluations, `last_at` is the newest's (Unix seconds).
    """

    updates: int
    last_at: float


class LedgerEntryError(ValueError):
    """An entry that cannot follow from those before it."""


class Budget:
    """All that a ledger's entries say. `apply` is the only way to change it."""

    def __init__(self) -> None:
        self.identifier = ""
        self.host = ""
        self.place = ""
        self.deltas: dict[str, float] = {}
        self.runs: dict[RunKey, Run] = {}
        self.works: dict[WorkName, Work] = {}
        self.seconds: dict[RunKey, float] = {}
        self.spendings: dict[str, dict[Cost, int]] = {}
        self.receipts: set[str] = set()  # coordinators whose orders must bring one
        self.unprotected: dict[str, Unprotected] = {}  # also of lineages that were never opened

    def apply(self, entry: Entry, at: float = 0.0) -> None:
        """Take in one entry, written at `at` (Unix seconds).

        Raises:
            LedgerEntryError: it does not follow from what came before.
        """
        _require(
            isinstance(entry, Created) != bool(self.identifier),
            "a ledger is created once, and first",
        )
        _FOLD[type(entry)](self, entry, at)

    def held(
        self,
        lineage: str,
        now: float,
        *,
        but: RunKey | None = None,
        coordinator: str | None = None,
    ) -> dict[Cost, int]:
        """Return what admitted runs, or those of one coordinator, hold on a lineage.

        Run `but` is left out.
        """
        runs = (
            run
            for key, run in self.runs.items()
            if run.lineage == lineage and key != but and coordinator in (None, key.coordinator)
        )
        return joined(*(run.held(now) for run in runs))

    def lapsing(self, now: float, silent_days: float) -> tuple[RunLapsed, ...]:
        """Return the entries by which runs lose their hold that have been silent for too long."""
        return tuple(
            RunLapsed(run=key, silent_days=silent_days)
            for key, run in self.runs.items()
            if run.held(now) and now - run.active_at > silent_days * DAY_S
        )

    def others(self, lineage: str, run: RunKey, now: float) -> dict[Cost, int]:
        """Return what is spent and held on a lineage by everything but one run."""
        mine = self.runs[run].spent if run in self.runs else {}
        spent = {c: n - mine.get(c, 0) for c, n in self.spendings[lineage].items()}
        return joined({c: n for c, n in spent.items() if n}, self.held(lineage, now, but=run))

    def may_reserve(
        self, accountant: Accountant, run: RunKey, charge: Charge, limits: Limits, now: float
    ) -> bool:
        """Whether an admitted run may reserve `charge` under the caps as they are now."""
        found = self.runs[run]
        after = joined(found.spent, {charge.cost: charge.steps})
        return fits(accountant, after, self.others(found.lineage, run, now), limits)

    def epsilon_run(self, accountant: Accountant, run: RunKey) -> float:
        """Return the epsilon of all that a run reserved, at its lineage's delta."""
        delta = self.deltas[self.runs[run].lineage]
        return epsilon_of(accountant, self.runs[run].spent, delta)


# ---- how each entry changes it ---------------------------------------------------------------


def work_name(work: WorkKey) -> WorkName:
    """Return what names a unit of work whatever its order says."""
    return (work.coordinator, work.run_id, work.round, work.kind)


def run_key(work: WorkKey) -> RunKey:
    """Return the run that a unit of work is part of."""
    return RunKey(coordinator=work.coordinator, run_id=work.run_id)


def _require(condition: bool, finding: str) -> None:
    if not condition:
        raise LedgerEntryError(finding)


def _created(budget: Budget, entry: Created, at: float) -> None:
    del at
    _require(bool(entry.identifier), "a ledger has an identifier")
    budget.identifier, budget.host, budget.place = entry.identifier, entry.host, entry.place


def _moved(budget: Budget, entry: Moved, at: float) -> None:
    del at
    budget.host, budget.place = entry.host, entry.place


def _receipt_seen(budget: Budget, entry: ReceiptSeen, at: float) -> None:
    del at
    budget.receipts.add(entry.coordinator)


def _receipt_waived(budget: Budget, entry: ReceiptWaived, at: float) -> None:
    del at
    _require(entry.coordinator in budget.receipts, "a coordinator that never sent a receipt")
    budget.receipts.discard(entry.coordinator)


def _opened(budget: Budget, entry: LineageOpened, at: float) -> None:
    del at
    _require(
        bool(entry.lineage) and 0 < entry.delta < 1, "a lineage has a name and a delta in 0..1"
    )
    _require(entry.lineage not in budget.deltas, f"lineage '{entry.lineage}' is open already")
    budget.deltas[entry.lineage] = entry.delta
    budget.spendings[entry.lineage] = {}


def _admitted(budget: Budget, entry: RunAdmitted, at: float) -> None:
    _require(entry.lineage in budget.deltas, f"lineage '{entry.lineage}' was never opened")
    for charge in entry.planned:
        _require_charge(charge)
    before = budget.runs.get(entry.run)
    admitted = Run(
        entry.lineage,
        entry.unit,
        entry.terms_digest,
        entry.planned,
        entry.expires_at,
        active_at=at,
        spent={} if before is None else before.spent,
    )
    if before is not None:
        same = replace(before, active_at=at, lapsed=False) == admitted
        _require(before.lapsed and same, "a run is admitted once, or again as it was once lapsed")
    budget.runs[entry.run] = admitted


def _released(budget: Budget, entry: RunReleased, at: float) -> None:
    del at
    _require(entry.run in budget.runs, "a run that was never admitted holds nothing")
    budget.runs[entry.run].released = True


def _lapsed(budget: Budget, entry: RunLapsed, at: float) -> None:
    del at
    run = budget.runs.get(entry.run)
    _require(run is not None and not run.lapsed, "a run that holds nothing does not lapse")
    assert run is not None
    run.lapsed = True


def _active(budget: Budget, work: WorkKey, at: float) -> None:
    if (run := budget.runs.get(run_key(work))) is not None:
        run.active_at = max(run.active_at, at)


def _reserved(budget: Budget, entry: WorkReserved, at: float) -> None:
    name = work_name(entry.work)
    work = budget.works.get(name, Work(order_digest=entry.work.order_digest))
    if not work.reservations:
        work = replace(work, order_digest=entry.work.order_digest)
    _require(work.order_digest == entry.work.order_digest, "another order for this round was begun")
    _require(not work.finished, "finished work is never done again")
    taken = None
    if entry.charge is not None:
        _require(entry.lineage is not None, "a charge without a lineage")
        assert entry.lineage is not None
        _require_charge(entry.charge)
        taken = (entry.lineage, entry.charge)
        _spend(budget, run_key(entry.work), taken, 1)
    _active(budget, entry.work, at)
    budget.works[name] = replace(
        work,
        lineage=entry.lineage,
        reservations=(*work.reservations, taken),
        refundable=True,
    )


def _refunded(budget: Budget, entry: WorkRefunded, at: float) -> None:
    work = budget.works.get(work_name(entry.work))
    _require(
        work is not None
        and work.refundable
        and work.order_digest == entry.work.order_digest
        and not work.finished,
        "only the newest reservation is taken back, once, before the work is done",
    )
    assert work is not None
    _active(budget, entry.work, at)
    *rest, last = work.reservations
    if last is not None:
        _spend(budget, run_key(entry.work), last, -1)
    budget.works[work_name(entry.work)] = replace(work, reservations=tuple(rest), refundable=False)


def _require_charge(charge: Charge) -> None:
    cost = charge.cost
    _require(
        charge.steps > 0 and cost.noise_multiplier > 0 and 0 < cost.sample_rate <= 1,
        "a charge is of steps with noise, each at a sampling rate above 0, at most 1",
    )


def _spend(budget: Budget, run: RunKey, taken: tuple[str, Charge], sign: Literal[1, -1]) -> None:
    lineage, charge = taken
    _require(run in budget.runs and budget.runs[run].lineage == lineage, "the run has no hold here")
    for spent in (budget.spendings[lineage], budget.runs[run].spent):
        spent[charge.cost] = spent.get(charge.cost, 0) + sign * charge.steps


def _committed(budget: Budget, entry: WorkCommitted, at: float) -> None:
    work = budget.works.get(work_name(entry.work))
    _require(
        work is not None
        and bool(work.reservations)
        and work.order_digest == entry.work.order_digest
        and not work.finished,
        "only work under way is committed, once",
    )
    assert work is not None
    budget.works[work_name(entry.work)] = replace(work, finished=True)
    _active(budget, entry.work, at)
    if work.lineage is not None and work.reservations[-1] is None:
        before = budget.unprotected.get(work.lineage)
        updates = before.updates + 1 if before else 1
        budget.unprotected[work.lineage] = Unprotected(updates=updates, last_at=at)
    run = run_key(entry.work)
    budget.seconds[run] = budget.seconds.get(run, 0.0) + entry.update.seconds


_FOLD: Final[Mapping[type, Callable[[Budget, Any, float], None]]] = {
    Created: _created,
    Moved: _moved,
    ReceiptSeen: _receipt_seen,
    ReceiptWaived: _receipt_waived,
    LineageOpened: _opened,
    RunAdmitted: _admitted,
    RunReleased: _released,
    RunLapsed: _lapsed,
    WorkReserved: _reserved,
    WorkRefunded: _refunded,
    WorkCommitted: _committed,
}
