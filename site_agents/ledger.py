"""The site's ledger: what was admitted, reserved and finished, and so the privacy budget.

Entries lie on disk as ledger_file.py keeps them; `fedfactory.privacy.budget` says what they add up
to. A ledger that is missing, cut short, rolled back, copied or edited does not open, and the site
trains nothing: a budget that cannot be trusted is no budget.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.plans import Anchor
from fedfactory.contracts.updates import Update
from fedfactory.privacy.accounting import Cost, Rdp
from fedfactory.privacy.budget import Budget, LedgerEntryError, WorkName, work_name
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
    read_entry,
)
from site_agents.accountant import ORDERS, RdpAccounting
from site_agents.ledger_file import FILE, LOST, START, LedgerError, LedgerFile, Row
from site_agents.ledger_place import host
from site_agents.local_disk import refuse_network_disk

__all__ = ["FILE", "Ledger", "LedgerError", "WorkConflictError"]

CLOCK_TOLERANCE_S: Final = 300.0


class WorkConflictError(Exception):
    """Another order for the same round was already begun."""


class _Folded:
    """Rows read so far, and what they add up to."""

    def __init__(self) -> None:
        self.budget = Budget()
        self.finished: dict[WorkName, int] = {}  # which row holds the finished update
        self.sequence = 0
        self.head = START
        self.at = 0.0

    def follow(self, row: Row, entry: Entry) -> None:
        """Note a row whose entry the budget has taken in."""
        if isinstance(entry, WorkCommitted):
            self.finished[work_name(entry.work)] = row.sequence
        self.sequence, self.head, self.at = row.sequence, row.head, row.at


class Ledger:
    """The ledger in one folder. Safe to use from several threads.

    Several processes may open it (an agent, and a person's commands); the first to admit a run or
    reserve work is the only one that spends, until it closes the ledger.
    """

    def __init__(self, file: LedgerFile) -> None:
        self._file = file
        self._lock = threading.RLock()
        self._folded = _Folded()
        self._doubtful = False  # a write failed: what is on disk is read anew
        self._spends = False
        self.accountant = RdpAccounting(self._recall, self._keep)
        self._basis = f"{self.accountant.name} {ORDERS}"

    # ---- making, opening, closing --------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, lineages: Mapping[str, float], *, actor: str) -> None:
        """Make the ledger of a new site, with its lineages and their deltas.

        Raises:
            LedgerError: there is one already, or the folder cannot be written.
            UsageError: the folder is on a network file system.
        """
        refuse_network_disk(folder)
        ledger = cls(LedgerFile.create(folder))
        try:
            its_host, its_place = ledger.where
            ledger.append(Created(identifier=secrets.token_hex(16), host=its_host, place=its_place))
            for lineage, delta in lineages.items():
                ledger.open_lineage(
                    lineage, delta, actor=actor, reason="named when the site was made"
                )
        finally:
            ledger.close()

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open and verify the ledger.

        Raises:
            LedgerError: it is missing, altered, behind its own head file, or not at its place.
            UsageError: the folder is on a network file system.
        """
        ledger = cls._verified(folder)
        budget = ledger.budget
        if (budget.host, budget.place) != ledger.where:
            ledger.close()
            raise LedgerError(
                f"{folder / FILE} was made for another host or file: a second copy would spend the"
                " same budget twice. If the first is gone for good:"
                " site-agent ledger move --reason TEXT"
            )
        return ledger

    @classmethod
    def move(cls, folder: Path, *, actor: str, reason: str) -> None:
        """Take host, file and clock for right as they are now.

        After the host or the folder was replaced, or when the clock had been ahead for a while.

        Raises:
            LedgerError: the ledger does not hold, or an agent uses it.
            UsageError: the folder is on a network file system.
        """
        ledger = cls._verified(folder)
        try:
            its_host, its_place = ledger.where
            ledger.append(Moved(host=its_host, place=its_place, actor=actor, reason=reason))
        finally:
            ledger.close()

    @classmethod
    def _verified(cls, folder: Path) -> Self:
        refuse_network_disk(folder)
        ledger = cls(LedgerFile(folder))
        try:
            ledger.refresh()
            ledger._file.check_told()
        except LedgerError:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Close the files."""
        with self._lock:
            self._file.close()

    # ---- reading -------------------------------------------------------------------------------

    @property
    def budget(self) -> Budget:
        """What all entries add up to."""
        return self._folded.budget

    @property
    def sequence(self) -> int:
        """Number of entries."""
        return self._folded.sequence

    @property
    def head(self) -> str:
        """The head after the last entry, sha256:<hex>."""
        return self._folded.head

    @property
    def end(self) -> tuple[int, str]:
        """Number of entries and the head after the last, of one moment: what an anchor is of."""
        with self._lock:
            return self._folded.sequence, self._folded.head

    @property
    def where(self) -> tuple[str, str]:
        """The host that it is opened on, and the file that it is."""
        return host(), self._file.place

    def refresh(self) -> None:
        """Take in what the administrator's commands wrote meanwhile.

        Raises:
            LedgerError: the file no longer holds.
        """
        with self._lock:
            self._catch_up()

    def finished(self, key: WorkKey) -> Update | None:
        """Return the finished update of this very work, or None.

        Raises:
            WorkConflictError: another order for the same run, round and kind was begun.
            LedgerError: the entry that holds it was altered.
        """
        with self._lock:
            name = work_name(key)
            work = self.budget.works.get(name)
            if work is None or not work.reservations:
                return None
            if work.order_digest != key.order_digest:
                raise WorkConflictError
            if not work.finished:
                return None
            return from_json(WorkCommitted, self._file.row(self._folded.finished[name]).body).update

    def head_at(self, sequence: int) -> str | None:
        """Return the head after entry `sequence` (0: before the first), None if there is none."""
        with self._lock:
            return self._file.head_at(sequence)

    def contradiction(self, anchor: Anchor) -> str | None:
        """Say how an anchor kept elsewhere contradicts this ledger; None if it does not."""
        if anchor.ledger != self.budget.identifier:
            return "the anchor is of another ledger of this site"
        if anchor.ledger_sequence > self.sequence:
            return (
                f"the anchor saw entry {anchor.ledger_sequence}, this ledger ends at"
                f" {self.sequence}: it was rolled back"
            )
        if self.head_at(anchor.ledger_sequence) != anchor.ledger_head:
            return f"entry {anchor.ledger_sequence} is not the one that the anchor saw"
        return None

    def recent(self, count: int) -> Sequence[Row]:
        """Return the newest entries, oldest first, each verified."""
        with self._lock:
            after = max(0, self.sequence - count)
            head = self._file.head_at(after)
            if head is None:
                raise LedgerError(f"{self._file.path}: entry {after} is missing; {LOST}")
            return tuple(self._file.rows(after, head))

    # ---- writing -------------------------------------------------------------------------------

    def open_lineage(self, lineage: str, delta: float, *, actor: str, reason: str) -> None:
        """Give a population a budget of its own; its delta is fixed for good."""
        self.append(LineageOpened(lineage=lineage, delta=delta, actor=actor, reason=reason))

    def note_receipt(self, coordinator: str) -> None:
        """Remember for good that a coordinator sends receipts of this ledger."""
        self.append(ReceiptSeen(coordinator=coordinator))

    def waive_receipt(self, coordinator: str, *, actor: str, reason: str) -> None:
        """Take a coordinator's orders without a receipt, until it sends one again."""
        self.append(ReceiptWaived(coordinator=coordinator, actor=actor, reason=reason))

    def admit(self, entry: RunAdmitted) -> None:
        """Hold a run's whole plan."""
        self.append(entry)

    def release(self, run: RunKey, *, actor: str, reason: str) -> None:
        """Give back what a run holds and has not reserved."""
        self.append(RunReleased(run=run, actor=actor, reason=reason))

    def lapse(self, entry: RunLapsed) -> None:
        """Give back what a run holds that has been silent for too long."""
        self.append(entry)

    def reserve(self, key: WorkKey, lineage: str | None, charge: Charge | None) -> None:
        """Spend a charge for work that begins now; durable before this returns."""
        self.append(WorkReserved(work=key, lineage=lineage, charge=charge))

    def refund(self, key: WorkKey) -> None:
        """Take back the newest reservation of work that provably never began."""
        self.append(WorkRefunded(work=key))

    def commit(self, key: WorkKey, update: Update) -> None:
        """Keep finished work, durably, before it is sent."""
        self.append(WorkCommitted(work=key, update=update))

    def append(self, entry: Entry) -> None:
        """Write one entry durably, then take it in.

        Raises:
            LedgerError: it cannot follow, cannot be written, or the clock went back. Where it says
                so of the head file alone, the entry stands.
        """
        with self._lock:
            try:
                with self._file.writing():
                    self._write(entry)
            except LedgerError:
                if self._doubtful:
                    with suppress(LedgerError):  # what is spent is overstated until it can be read
                        self._catch_up()
                raise

    def _write(self, entry: Entry) -> None:
        self._be_the_one_that_may(entry)
        self._catch_up()
        folded, kind = self._folded, type(entry).__name__
        at = self._time_of(entry)
        try:
            folded.budget.apply(entry, at)
        except LedgerEntryError as error:
            raise LedgerError(f"the ledger refuses {kind}: {error}") from error
        self._doubtful = True
        row = self._file.insert(
            after=folded.sequence, head=folded.head, at=at, kind=kind, body=to_json(entry)
        )
        self._doubtful = False
        folded.follow(row, entry)
        self._file.tell(row)

    # ---- within --------------------------------------------------------------------------------

    def _be_the_one_that_may(self, entry: Entry) -> None:
        """Let one process spend, so that nothing changes between its judgement and its entry."""
        if self._spends or not isinstance(entry, RunAdmitted | WorkReserved | Moved):
            return
        self._file.hold_alone()
        before = self.sequence
        self._catch_up()
        if isinstance(entry, RunAdmitted | WorkReserved):
            self._spends = True
        if self.sequence != before:
            raise LedgerError(
                f"{self._file.path} was written by another process just now: ask again"
            )

    def _time_of(self, entry: Entry) -> float:
        now = time.time()
        if isinstance(entry, Moved):
            return now
        if now < self._folded.at - CLOCK_TOLERANCE_S:
            raise LedgerError(
                f"the clock is {self._folded.at - now:.0f} s behind the ledger's last entry: set it"
                " right (timedatectl); if it is right now and was ahead before: site-agent ledger"
                " move"
            )
        return max(now, self._folded.at)

    def _catch_up(self) -> None:
        """Take in the entries that this object has not seen, each verified against the last."""
        folded = _Folded() if self._doubtful else self._folded
        try:
            for row in self._file.rows(folded.sequence, folded.head):
                entry = read_entry(row.kind, row.body)
                folded.budget.apply(entry, row.at)
                folded.follow(row, entry)
        except (ProtocolError, KeyError, LedgerEntryError) as error:
            raise LedgerError(
                f"{self._file.path}: entry {folded.sequence + 1} does not follow ({error}); {LOST}"
            ) from error
        self._folded, self._doubtful = folded, False

    def _recall(self, cost: Cost) -> Rdp | None:
        with self._lock:
            return self._file.recall(self._basis, cost)

    def _keep(self, cost: Cost, rdp: Rdp) -> None:
        with self._lock:
            self._file.keep(self._basis, cost, rdp)
