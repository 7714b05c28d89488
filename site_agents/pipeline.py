"""One order's way through the site: gates, ledger, work, release, answer.

Each step may end the way with a refusal by code; the reason stays in the site's log. What is asked
before an order is begun, paid for and let out is the table in gates.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.plans import Anchor, SignedOrder, SignedRunEnded
from fedfactory.contracts.updates import Refusal, Reply
from fedfactory.privacy.budget import WorkName, work_name
from site_agents.approvals import Approvals, Pending
from site_agents.audit.entries import refused
from site_agents.books import Books
from site_agents.books_view import BooksError
from site_agents.config import POLICY_FILE
from site_agents.ending import end_run
from site_agents.executors.executor import Executor
from site_agents.gate_case import Case, Ground
from site_agents.gates import EVERY_ORDER, NEW_WORK, parts, pass_through
from site_agents.ledger import LedgerError
from site_agents.received import Received, Unreadable
from site_agents.refused import RefusedError
from site_agents.spool import Spool
from site_agents.unauthorised import CODES

if TYPE_CHECKING:
    from site_agents.release import Release, Send
    from site_agents.working import Fetch, Working

log = logging.getLogger("site_agents.pipeline")

# Said once who asks is known and allowed, also of work that was charged before.
AFTER_AUTHORISATION: Final = ("work_failed", "killed", "paused", "budget_exhausted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How base models come in, to stay while they are in use, and updates go out."""

    fetch: Fetch
    send: Send


class Pipeline:
    """Answers orders. Safe to use from several threads; one unit of work is done by one of them.

    `sources` are the names under `data` in agent.yaml.
    """

    def __init__(
        self,
        *,
        site: str,
        home: Path,
        books: Books,
        executor: Executor,
        transfer: Transfer,
        timeout_s: float,
        sources: Collection[str],
    ) -> None:
        self._site = site
        self._home = home
        self._books = books
        self._transfer = transfer
        self._timeout_s = timeout_s
        self._approvals = Approvals(home)
        self._ground = Ground(site=site, home=home, sources=sources, books=books, worker=executor)
        self._executor = executor
        self._spool = Spool(home, books, self._approvals)
        self._lock = threading.Lock()
        self._turns: WeakValueDictionary[WorkName, threading.Lock] = WeakValueDictionary()

    # NumPy comes with both, which a site that is never asked to work does not need.
    @cached_property
    def _working(self) -> Working:
        from site_agents.working import Working

        return Working(
            home=self._home,
            books=self._books,
            executor=self._executor,
            fetch=self._transfer.fetch,
            timeout_s=self._timeout_s,
        )

    @cached_property
    def _release(self) -> Release:
        from site_agents.release import Release

        return Release(books=self._books, approvals=self._approvals, send=self._transfer.send)

    def answer(self, received: Received) -> Reply | Pending | Anchor | None:
        """Return the answer to one message; None if it does not even name its work."""
        if isinstance(received, Unreadable):
            self._books.unauthorised.note("message", received.finding)
            return None
        if isinstance(received, SignedRunEnded):
            policy_file = self._home / POLICY_FILE
            return end_run(received, site=self._site, policy_file=policy_file, books=self._books)
        delivery, key = received.delivery, received.key
        with self._lock:
            turn = self._turns.setdefault(work_name(key), threading.Lock())
        came_at = time.time()
        try:
            with self._spool.in_hand(key), turn:
                came_at = time.time()  # an order waits while the same work is done for another
                return self._answer(delivery, key)
        except RefusedError as error:
            if error.code not in CODES or self._books.unauthorised.note("order", str(error)):
                self._spool.keep_refused(key, received.text, came_at)
            if error.code in CODES:  # recorded by the count; an anchor is for those we know
                return Reply(update=None, refusal=Refusal(work=key, code=error.code), anchor=None)
            return self._refusal(delivery, key, error)

    def _answer(self, delivery: SignedOrder, key: WorkKey) -> Reply | Pending:
        books, folder = self._books, self._spool.folder(key)
        case = Case.of_delivery(self._ground, delivery, key)
        try:
            pass_through(parts(*EVERY_ORDER), case)
            with self._lock:  # made once, for the first order that comes so far
                working, release = self._working, self._release
            update = case.update
            fresh = update is None
            if update is None:
                receipt = delivery.envelope.receipt
                if receipt is not None:
                    books.keep_receipt(key.coordinator, receipt)
                pass_through(parts(NEW_WORK), case)
                update = working.work(case, folder)
                self._spool.prune()
            return release.release(case, update, folder, fresh=fresh)
        except (BooksError, LedgerError) as error:
            raise RefusedError("books_broken", str(error)) from error
        except (FedfactoryError, OSError) as error:
            finding = f"{error} {getattr(error, 'diagnostic', None) or ''}"
            raise RefusedError("transfer_failed", finding) from error

    def _refusal(self, delivery: SignedOrder, key: WorkKey, why: RefusedError) -> Reply:
        """Write down that a code leaves, if the books still take it: they may be the reason."""
        log.warning("round %d %s refused: %s", key.round, key.kind, why)
        refusal, anchor = Refusal(work=key, code=why.code), None
        standing = self._books.standing(key) if why.code in AFTER_AUTHORISATION else None
        try:
            anchor = self._books.record(
                refused(
                    refusal,
                    destination=delivery.envelope.order.coordinator,
                    delivery=delivery.envelope.number,
                    finding=str(why),
                    standing=standing,
                )
            )
        except BooksError as error:
            log.error("the refusal could not be recorded: %s", error)  # noqa: TRY400
        return Reply(update=None, refusal=refusal, anchor=anchor, standing=standing)
