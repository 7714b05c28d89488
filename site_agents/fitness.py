"""Would this site take part in a run? Asked as its first order would be, with nothing done.

The gates that an order meets say the same code, up to the moment at which data would be touched: so
the answer tells no more than the order's refusal would, and a run that every site is fit for is not
refused in its first round. No budget is held by asking.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, TypeVar

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import Order, Scalar
from fedfactory.contracts.plans import Anchor, OrderEnvelope, SignedTerms
from fedfactory.contracts.questions import SignedQuery
from site_agents.executors.executor import Executor
from site_agents.gate_case import Case, Ground
from site_agents.gate_checks import CountClause
from site_agents.gates import BEFORE_A_RUN, pass_through
from site_agents.jobs.settings import SourceFacts

# A question is answered at once: data that take longer to count are judged when the order comes.
COUNT_PATIENCE_S: Final = 4.0
COUNTS: Final = tuple(gate for gate in BEFORE_A_RUN if isinstance(gate.check, CountClause))
T = TypeVar("T")


def judge_fitness(ground: Ground, signed: SignedQuery, plan: SignedTerms) -> None:
    """Ask of a plan what its first order would be asked, as far as the plan alone says.

    Raises:
        RefusedError: the order would be refused, with this code.
    """
    question = signed.query
    sending = first_sending(question.site, plan, question.receipt)
    key = sending.order.key()
    case = Case(ground, sending, key, question, signed.signature, is_question=True)
    pass_through(BEFORE_A_RUN, case)
    if plan.terms.evaluate:  # the look at the data counted both parts
        evaluation = replace(sending.order, kind="evaluate", training=None)
        case.sending = replace(sending, order=evaluation)
        pass_through(COUNTS, case)


def first_sending(site: str, plan: SignedTerms, receipt: Anchor | None) -> OrderEnvelope:
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
        terms_digest=digest_of(terms),
    )
    return OrderEnvelope(order=order, signed=plan, number=1, expires_at=math.inf, receipt=receipt)


class BriefCount:
    """Asks an executor, one question at a time, and waits no longer than a question may take.

    What is not known by then is None; the worker works on, for nobody, and until it is done no
    other question is put to it: questions cannot pile up work.
    """

    def __init__(self, executor: Executor, patience_s: float = COUNT_PATIENCE_S) -> None:
        self._executor = executor
        self._patience_s = patience_s
        self._asking = threading.Lock()

    def describe(
        self, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> SourceFacts | None:
        """Return what the source holds. Raises what Executor.describe raises."""
        return self._ask(lambda: self._executor.describe(source, task, task_parameters))

    def check_form(self, source: str, task: str, task_parameters: Mapping[str, Scalar]) -> None:
        """Check the source's form. Raises what Executor.check_form raises."""
        self._ask(lambda: self._executor.check_form(source, task, task_parameters))

    def _ask(self, question: Callable[[], T]) -> T | None:
        if not self._asking.acquire(blocking=False):
            return None
        found: list[T] = []
        failed: list[FedfactoryError] = []

        def ask() -> None:
            try:
                found.append(question())
            except FedfactoryError as error:
                failed.append(error)
            finally:
                self._asking.release()

        asking = threading.Thread(target=ask, name="count", daemon=True)
        asking.start()
        asking.join(self._patience_s)
        if failed:
            raise failed[0]
        return found[0] if found else None
