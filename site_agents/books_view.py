"""What is asked of a site's books without changing them: do they hold, what was done, what is left.

The agent's Books is one with more; `policy explain` reads the same files through this one alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, IntegrityError
from fedfactory.contracts.orders import Order, WorkKey
from fedfactory.contracts.plans import Anchor, RunTerms
from fedfactory.contracts.updates import Update
from fedfactory.privacy.budget import run_key, work_name
from fedfactory.privacy.entries import RunLapsed
from site_agents.admission import Shortfall, next_entry, stake_of
from site_agents.ledger import Ledger
from site_agents.policy import DataRule, Policy
from site_agents.receipt_file import ReceiptFile
from site_agents.second_place import SecondPlace


class BooksError(FedfactoryError):
    """The site's books do not hold: the site takes no work."""


class Chain(Protocol):
    """The audit chain, as far as books are held against what others saw of it."""

    def refresh(self) -> None:
        """Follow what was written. Raises IntegrityError, EnvironmentFailedError."""

    def head_at(self, length: int) -> str | None:
        """Return the head after `length` lines; None if the chain is shorter."""


class BooksView:
    """One site's ledger, audit chain and second place, read. Safe to use from several threads."""

    def __init__(
        self,
        site: str,
        ledger: Ledger,
        chain: Chain,
        receipts: ReceiptFile,
        second_place: SecondPlace,
    ) -> None:
        self._site = site
        self._ledger = ledger
        self._chain = chain
        self._receipts = receipts
        self._second_place = second_place
        self._lock = threading.RLock()

    def check(self, receipt: Anchor | None) -> None:
        """Hold the books against what coordinators, and the second place, saw of them.

        Raises:
            BooksError: they were rolled back, or are other books.
            LedgerError: the ledger's file no longer holds.
        """
        with self._lock, holding():
            # Read first: the books are looked at later, so they can only be further.
            seen = {"the second place": self._second_place.last(), "the coordinator": receipt}
            seen |= {f"coordinator '{n}'": one for n, one in self._receipts.newest().items()}
            self._ledger.refresh()
            self._chain.refresh()
            for who, anchor in seen.items():
                if anchor is not None and (found := self._contradiction(anchor)):
                    raise BooksError(f"{who} saw other books: {found}")

    def expects_receipt(self, coordinator: str) -> bool:
        """Whether a coordinator sent a receipt of these books before: new work needs one then."""
        return coordinator in self._ledger.budget.receipts

    def _contradiction(self, anchor: Anchor) -> str | None:
        """Say how an anchor kept elsewhere contradicts the whole history of the books."""
        if anchor.site != self._site:
            return "the anchor is of another site"
        if found := self._ledger.contradiction(anchor):
            return found
        if self._chain.head_at(anchor.audit_length) != anchor.audit_head:
            return (
                f"the audit chain had {anchor.audit_length} entries, and ours is shorter or another"
            )
        return None

    def finished(self, key: WorkKey) -> Update | None:
        """Return the finished update of this work; see Ledger.finished."""
        return self._ledger.finished(key)

    def is_finished(self, key: WorkKey) -> bool:
        """Whether work for this run, round and kind is done."""
        work = self._ledger.budget.works.get(work_name(key))
        return work is not None and work.finished

    def hours(self, key: WorkKey) -> float:
        """Return the hours of work that a run has had here."""
        return self._ledger.budget.seconds.get(run_key(key), 0.0) / 3600

    def shortfall(
        self, order: Order, terms: RunTerms, policy: Policy, rule: DataRule
    ) -> str | None:
        """Return why `reserve` would not take a private order now; holds and reserves nothing.

        Raises:
            LedgerError: what silent runs held cannot be freed.
        """
        ledger, stake = self._ledger, stake_of(policy, rule)
        with self._lock:
            self._lapse(policy)
            found = next_entry(
                ledger.budget, ledger.accountant, order, terms, stake=stake, now=time.time()
            )
        return found.finding if isinstance(found, Shortfall) else None

    def _lapse(self, policy: Policy) -> None:
        """Free what silent runs hold, before anybody's plan is held against it."""
        for entry in self._ledger.budget.lapsing(time.time(), policy.holds.silent_days):
            self._take_lapse(entry)

    def _take_lapse(self, entry: RunLapsed) -> None:
        """Free it here alone; nothing is written."""
        self._ledger.budget.apply(entry)


@contextmanager
def holding() -> Iterator[None]:
    """Whatever is wrong with chain or second place, the books do not hold."""
    try:
        yield
    except (EnvironmentFailedError, IntegrityError) as error:
        raise BooksError(str(error), diagnostic=error.diagnostic) from error
