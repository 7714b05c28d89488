"""The site's books together: the ledger, the audit chain, and where both are anchored elsewhere.

Work is only begun on books that hold: not behind what the coordinator or the second place has seen
of them, and able to be written. Everything here is durable when it returns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import Order, WorkKey
from fedfactory.contracts.plans import Anchor, RunTerms
from fedfactory.contracts.privacy import PrivacySpent, PrivacyStanding
from fedfactory.contracts.updates import Update
from fedfactory.privacy.accounting import epsilon_of, joined
from fedfactory.privacy.budget import run_key, work_name
from fedfactory.privacy.entries import Charge, RunAdmitted, RunKey, RunLapsed
from site_agents.admission import Shortfall, next_entry, stake_of
from site_agents.audit import AuditChain
from site_agents.books_view import BooksError, BooksView, holding
from site_agents.jobs.job import folder_name
from site_agents.ledger import Ledger
from site_agents.ledger_file import Row
from site_agents.policy import DataRule, Policy
from site_agents.receipt_file import ReceiptFile
from site_agents.second_place import SecondPlace
from site_agents.unauthorised import Unauthorised
from site_agents.unbounded import day_of, unbounded


class BudgetError(FedfactoryError):
    """What the privacy budget has left does not cover the plan."""


class Books(BooksView):
    """One site's ledger, audit chain and second place. Safe to use from several threads.

    `unauthorised` counts the messages that nobody pinned has signed, for the audit chain.
    """

    def __init__(
        self,
        site: str,
        ledger: Ledger,
        audit: AuditChain,
        receipts: ReceiptFile,
        second_place: SecondPlace,
    ) -> None:
        super().__init__(site, ledger, audit, receipts, second_place)
        self._audit = audit
        self.unauthorised = Unauthorised(self.record)

    def anchor(self) -> Anchor:
        """Return where the books stand now."""
        with self._lock:
            sequence, head = self._ledger.end
            return Anchor(
                site=self._site,
                ledger=self._ledger.budget.identifier,
                ledger_sequence=sequence,
                ledger_head=head,
                audit_length=self._audit.length,
                audit_head=self._audit.head,
            )

    def keep_receipt(self, coordinator: str, receipt: Anchor) -> None:
        """Keep a checked receipt, and for good that this coordinator sends them.

        Raises:
            BooksError, LedgerError: it could not be written.
        """
        with self._lock, holding():
            if not self.expects_receipt(coordinator):
                self._ledger.note_receipt(coordinator)
            self._receipts.keep(coordinator, receipt)

    def is_begun(self, key: WorkKey) -> bool:
        """Whether this work was reserved and is not finished."""
        work = self._ledger.budget.works.get(work_name(key))
        return work is not None and bool(work.reservations) and not work.finished

    def charged(self, key: WorkKey) -> Charge | None:
        """Return the charge of the newest reservation of begun work, None without DP."""
        newest = self._ledger.budget.works[work_name(key)].reservations[-1]
        return newest[1] if newest else None

    def paid(self, key: WorkKey) -> tuple[str, float] | None:
        """Return which lineage paid for a unit of work, and its epsilon alone; None without DP."""
        with self._lock:
            ledger = self._ledger
            taken = [r for r in ledger.budget.works[work_name(key)].reservations if r is not None]
            if not taken:
                return None
            charges = joined(*({charge.cost: charge.steps} for _, charge in taken))
            lineage = taken[0][0]
            return lineage, epsilon_of(ledger.accountant, charges, ledger.budget.deltas[lineage])

    def runs_of_work(self) -> Mapping[str, RunKey]:
        """Return whose each unit of work is, by the name of its folder (jobs/job.py)."""
        return {
            folder_name(number, kind, work.order_digest): RunKey(coordinator=hub, run_id=run_id)
            for (hub, run_id, number, kind), work in self._ledger.budget.works.copy().items()
        }

    @property
    def deltas(self) -> Mapping[str, float]:
        """Every lineage that was opened, and its delta."""
        return dict(self._ledger.budget.deltas)

    def unbounded(self) -> Mapping[str, str]:
        """Return what to say of each lineage whose updates left without privacy."""
        return unbounded(self._ledger.budget)

    def has_budget(self, lineage: str) -> bool:
        """Whether a lineage was opened."""
        return lineage in self._ledger.budget.deltas

    def rows(self, most: int) -> Sequence[Row]:
        """Return the ledger's newest entries as they lie on disk, oldest first, each verified.

        Raises:
            LedgerError: the ledger's file no longer holds.
        """
        self._ledger.refresh()
        return self._ledger.recent(most)

    def reserve(
        self, key: WorkKey, order: Order, terms: RunTerms, policy: Policy, rule: DataRule | None
    ) -> Charge | None:
        """Admit the order's run if need be, and reserve what the order costs; None without DP.

        Raises:
            BudgetError: the run's plan, or this order, does not fit. Nothing was reserved.
            LedgerError: the ledger cannot be written.
        """
        with self._lock:
            charge = None
            if order.privacy is not None:
                assert rule is not None
                charge = self._charge(order, terms, policy, rule)
            self._ledger.reserve(key, rule.lineage if rule else None, charge)
            return charge

    def _charge(self, order: Order, terms: RunTerms, policy: Policy, rule: DataRule) -> Charge:
        self._lapse(policy)
        ledger, stake, now = self._ledger, stake_of(policy, rule), time.time()
        found = next_entry(ledger.budget, ledger.accountant, order, terms, stake=stake, now=now)
        if isinstance(found, RunAdmitted):
            ledger.admit(found)
            found = next_entry(ledger.budget, ledger.accountant, order, terms, stake=stake, now=now)
        if isinstance(found, Shortfall):
            raise BudgetError(found.finding)
        assert isinstance(found, Charge)
        return found

    def _take_lapse(self, entry: RunLapsed) -> None:
        self._ledger.lapse(entry)

    def release(self, run: RunKey, terms_digest: str) -> bool:
        """Give back what a run that is over holds; whether it still held anything.

        Raises:
            LedgerError: the ledger cannot be written.
        """
        with self._lock:
            self._ledger.refresh()
            held = self._ledger.budget.runs.get(run)
            if held is None or held.terms_digest != terms_digest or held.released:
                return False
            self._ledger.release(run, actor=run.coordinator, reason="the run is over")
            return True

    def refund(self, key: WorkKey) -> None:
        """Take back the newest reservation of work that provably never began."""
        self._ledger.refund(key)

    def spent(self, key: WorkKey, charge: Charge) -> PrivacySpent:
        """State what guarantee holds for the run after a charge."""
        with self._lock:
            ledger, run = self._ledger, run_key(key)
            admitted = ledger.budget.runs[run]
            return PrivacySpent(
                epsilon_run=ledger.budget.epsilon_run(ledger.accountant, run),
                delta=ledger.budget.deltas[admitted.lineage],
                noise_multiplier=charge.cost.noise_multiplier,
                sample_rate=charge.cost.sample_rate,
                steps=charge.steps,
                unit="row" if admitted.unit == "row" else "unit",
                accountant=ledger.accountant.name,
            )

    def standing(self, key: WorkKey) -> PrivacyStanding | None:
        """State what holds for a run and its population now; None if the run was not admitted."""
        with self._lock:
            budget, run = self._ledger.budget, run_key(key)
            admitted = budget.runs.get(run)
            if admitted is None:
                return None
            left = budget.unprotected.get(admitted.lineage)
            return PrivacyStanding(
                epsilon_run=budget.epsilon_run(self._ledger.accountant, run),
                delta=budget.deltas[admitted.lineage],
                unit="row" if admitted.unit == "row" else "unit",
                accountant=self._ledger.accountant.name,
                unprotected_updates=left.updates if left else 0,
                unprotected_on=day_of(left.last_at) if left else None,
            )

    def commit(self, key: WorkKey, update: Update) -> None:
        """Keep finished work before anything of it leaves."""
        self._ledger.commit(key, update)

    def record(self, entry: Mapping[str, Any]) -> Anchor:
        """Write down what leaves, anchor the books in the second place; return the anchor.

        Raises:
            BooksError: it could not be written, and so must not leave.
        """
        with self._lock, holding():
            self._hold_against_second_place()
            self._audit.append(entry)
            anchor = self.anchor()
            self._second_place.record(anchor)
            return anchor

    def _hold_against_second_place(self) -> None:
        """Write no anchor there that contradicts the last: it would hide what that one shows."""
        seen = self._second_place.last()  # read first: the books can only be further
        if seen is None:
            return
        self._ledger.refresh()
        self._audit.refresh()
        if found := self._contradiction(seen):
            raise BooksError(f"the second place saw other books: {found}")

    def close(self) -> None:
        """Close both books."""
        self.unauthorised.close()
        self._audit.close()
        self._ledger.close()
