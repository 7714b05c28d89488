"""Would this site take part in a run? Asked as its first order would be, with nothing done.

The same permission, books and budget that an order meets say the same code, up to the moment at
which data would be touched: so the answer tells no more than the order's refusal would, and a run
that every site is fit for is not refused in its first round. No budget is held by asking.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Final

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import Order, Scalar
from fedfactory.contracts.plans import Anchor, Sending, SignedPlan
from fedfactory.privacy.entries import RunKey
from site_agents.books import Books, BooksError, BudgetError
from site_agents.executors.executor import Executor
from site_agents.jobs.settings import SourceFacts
from site_agents.ledger import LedgerError
from site_agents.permission import Count, Permission
from site_agents.receipts import check_receipt
from site_agents.refused import RefusedError

# A question is answered at once: data that take longer to count are judged when the order comes.
COUNT_PATIENCE_S: Final = 4.0


def judge_fitness(
    site: str,
    plan: SignedPlan,
    receipt: Anchor | None,
    coordinator_key: str,
    *,
    permission: Permission,
    books: Books,
    count: Count,
) -> None:
    """Ask of a plan what its first order would be asked.

    `coordinator_key` is the fingerprint of the key that signed the question, `site` whom it names,
    `receipt` what the coordinator last saw of this site's books.

    Raises:
        RefusedError: the order would be refused, with this code.
    """
    sending = first_sending(site, plan, receipt)
    order, terms = sending.order, plan.terms
    run = RunKey(coordinator=terms.coordinator, run_id=terms.run_id)
    try:
        asked = permission.allow(
            sending, coordinator_key, gpu_hours_of_run=books.hours_of(run), finished=False
        )
        books.check(receipt)
        check_receipt(books, order.coordinator, receipt)
        permission.begin(asked, count)
        books.admits(order, terms, asked.policy, asked.rule)
    except (BooksError, LedgerError) as error:
        raise RefusedError("books_broken", str(error)) from error
    except BudgetError as error:
        raise RefusedError("budget_exhausted", str(error)) from error


def first_sending(site: str, plan: SignedPlan, receipt: Anchor | None) -> Sending:
    """Return the sending of the first order that a coordinator would make of a plan. Pure."""
    terms = plan.terms
    order = Order(
        coordinator=terms.coordinator,
        run_id=terms.run_id,
        round=1,
        kind="train",
        site=site,
        task=terms.task,
        task_parameters=terms.task_parameters,
        training=terms.training,
        base=terms.initial,
        seed=0,
        privacy=terms.privacy,
        plan_digest=digest_of(terms),
    )
    return Sending(order=order, plan=plan, number=1, expires_at=math.inf, receipt=receipt)


class BriefCount:
    """Has an executor count, one source at a time, and waits no longer than a question may take.

    What is not known by then is None; the worker counts on, for nobody, and until it is done no
    other question has it count: questions cannot pile up work.
    """

    def __init__(self, executor: Executor, patience_s: float = COUNT_PATIENCE_S) -> None:
        self._executor = executor
        self._patience_s = patience_s
        self._counting = threading.Lock()

    def __call__(
        self, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> SourceFacts | None:
        """Return what the source holds. Raises what Executor.describe raises."""
        if not self._counting.acquire(blocking=False):
            return None
        found: list[SourceFacts | FedfactoryError] = []

        def count() -> None:
            try:
                found.append(self._executor.describe(source, task, task_parameters))
            except FedfactoryError as error:
                found.append(error)
            finally:
                self._counting.release()

        counting = threading.Thread(target=count, name="count", daemon=True)
        counting.start()
        counting.join(self._patience_s)
        match found:
            case [SourceFacts() as facts]:
                return facts
            case [FedfactoryError() as error]:
                raise error
            case _:
                return None
