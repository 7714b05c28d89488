"""Doing a piece of work that is allowed: fetch, reserve, run, guard, and keep the update.

Budget is reserved on disk before data is touched, and anew at each attempt. What comes out has
passed the egress guard and is in the ledger; whether it leaves is decided in release.py.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import FedfactoryError, IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.update_norms import norm_bound
from fedfactory.contracts.updates import Payload, Update
from fedfactory.privacy.entries import Charge
from fedfactory.privacy.sampling import noising
from fedfactory.wire.arrays import file_ref
from fedfactory.wire.base_norm import read_base
from site_agents.admission import measurement_of, mechanism_of
from site_agents.books import Books, BudgetError
from site_agents.egress import HeldBack, check_metrics, check_update
from site_agents.executors.executor import (
    Executor,
    JobTimeoutError,
    NeverBegunError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.failures import note_failure
from site_agents.gate_case import BaseModel, Case
from site_agents.gate_checks import begin_by
from site_agents.gates import BASE, BEFORE_EACH_RESERVATION, parts, pass_through
from site_agents.jobs.job import RESULT, UPDATE, Job, JobResult, read_result
from site_agents.ledger import LedgerError
from site_agents.refused import RefusedError

log = logging.getLogger("site_agents.working")

ATTEMPTS: Final = 2
AFTER_DATA: Final = ("timed_out", "worker_lost", "egress_refused", "work_failed", "bad_model")
Fetch = Callable[[BlobRef], AbstractContextManager[Path]]


class Working:
    """Does the work of one site. Safe to use from several threads."""

    def __init__(
        self, *, home: Path, books: Books, executor: Executor, fetch: Fetch, timeout_s: float
    ) -> None:
        self._home = home
        self._books = books
        self._executor = executor
        self._fetch = fetch
        self._timeout_s = timeout_s
        self._counting_failures = threading.Lock()

    def work(self, case: Case, folder: Path) -> Update:
        """Do it, in a folder of its own; the update is in the ledger when this returns.

        Raises:
            RefusedError: it could not be done.
            BudgetError, LedgerError: it could not be paid.
            FedfactoryError, OSError: the base model did not come.
        """
        charge, result = self._left_behind(case, folder) or self._execute(case, folder)
        with self._after_data(case):
            bound = self.norm_bound(case, charge) if case.order.kind == "train" else 0.0
            update = self._guard(case, charge, result, folder, bound)
        self._books.commit(case.key, update)
        return update

    @contextmanager
    def _after_data(self, case: Case) -> Iterator[None]:
        """Count a failure of private work, and let only one code of it out."""
        try:
            yield
        except RefusedError as error:
            if case.private and error.code in AFTER_DATA:
                self._note_failure(case)
                # Which way work on private data failed says something of the data.
                raise RefusedError("work_failed", str(error)) from error
            raise

    def _note_failure(self, case: Case) -> None:
        assert case.rule is not None
        try:
            with self._counting_failures:
                note_failure(self._home, case.rule.lineage, case.order.coordinator)
        except (ProtocolError, OSError) as error:
            log.error("the failure could not be counted: %s", error)  # noqa: TRY400

    def _left_behind(self, case: Case, folder: Path) -> tuple[Charge | None, JobResult] | None:
        """Return what an agent left that ended after the work and before its commit: it is paid."""
        if not (self._books.is_begun(case.key) and (folder / RESULT).is_file()):
            return None
        try:
            result = read_result(folder)
            whole = result.update is None or file_ref(folder / UPDATE) == result.update
        except (ProtocolError, OSError):
            whole = False
        if not whole:
            log.warning("%s: what an earlier agent left is not whole: it is done anew", folder)
            return None
        return None if result.failure else (self._books.charged(case.key), result)

    def _execute(self, case: Case, folder: Path) -> tuple[Charge | None, JobResult]:
        with ExitStack() as held:
            case.base_model = BaseModel(
                fetch=lambda: held.enter_context(self._fetch(case.order.base)),
                rehearse=self._executor.rehearse,
            )
            pass_through(parts(BASE), case)
            with self._after_data(case):
                return self._attempt(case, folder)

    def _attempt(self, case: Case, folder: Path) -> tuple[Charge | None, JobResult]:
        """Reserve and run; every attempt is reserved anew, for each may have touched the data.

        That a second attempt was needed may follow from a record: why none is paid for stays here.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                charge = self._reserve(case)
            except (RefusedError, LedgerError) as error:
                if attempt == 1:
                    raise
                log.warning("attempt %d is not made: %s", attempt, error)
                break
            try:
                return charge, self._run(case, charge, case.base_file, folder)
            except NeverBegunError as error:
                self._books.refund(case.key)
                raise RefusedError("paused", str(error)) from error
            except WorkStoppedError as error:
                raise RefusedError("killed", str(error)) from error
            except JobTimeoutError as error:
                raise RefusedError("timed_out", str(error)) from error
            except WorkerLostError as error:
                log.warning("attempt %d: %s", attempt, error)
            except (FedfactoryError, OSError) as error:
                raise RefusedError("work_failed", str(error)) from error
        raise RefusedError("worker_lost", "the worker was lost at every attempt")

    def _reserve(self, case: Case) -> Charge | None:
        """Ask what may have changed since the gates were passed, then pay; None without DP."""
        if case.private:
            case.later()
            pass_through(BEFORE_EACH_RESERVATION, case)
        rule = case.rule if case.reads_data else None  # whose records are worked on
        try:
            return self._books.reserve(
                case.key, case.order, case.sending.signed.terms, case.policy, rule
            )
        except BudgetError as error:  # other work took it between gate and reservation
            raise RefusedError("budget_exhausted", str(error)) from error

    def _run(self, case: Case, charge: Charge | None, base: Path, folder: Path) -> JobResult:
        timeout_s = self._timeout_s
        if not case.private:  # by a coordinator's clock, it could have every order fail, unpaid
            timeout_s = min(timeout_s, max(1.0, case.sending.expires_at - time.time()))
        result = self._executor.run(_job(case, charge, base), folder, timeout_s)
        if result.failure is not None:
            raise RefusedError(result.failure, "the worker's log says why")
        return result

    def norm_bound(self, case: Case, charge: Charge | None) -> float:
        """Return the bound of the update's norm, which the coordinator computes alike."""
        order, terms = case.order, case.sending.signed.terms
        assert order.training is not None
        found = None
        if charge is not None:
            assert case.rule is not None
            sigma = charge.cost.noise_multiplier
            found = noising(order.training, case.rule.public_size, sigma)
        with self._fetch(order.base) as path:
            try:
                base = read_base(path, terms)
            except IntegrityError as error:
                raise RefusedError("bad_model", str(error)) from error
        return norm_bound(terms, order.training, base, found)

    def _guard(
        self,
        case: Case,
        charge: Charge | None,
        result: JobResult,
        folder: Path,
        max_norm_l2: float,
    ) -> Update:
        order, policy = case.order, case.policy
        # Of private training no metric leaves: what a task says of it would be without noise.
        found_metrics = {} if charge and order.kind == "train" else result.metrics
        metrics = check_metrics(found_metrics, policy.metrics)
        if isinstance(metrics, HeldBack):
            raise RefusedError("egress_refused", metrics.finding)
        payload = None
        if order.kind == "train":
            assert result.declared is not None
            assert result.update is not None
            found = check_update(folder / UPDATE, result.declared, result.update, max_norm_l2)
            if isinstance(found, HeldBack):
                raise RefusedError("egress_refused", found.finding)
            payload = Payload(form="delta", blob=result.update)
        examples, seconds, spent = result.examples, round(result.seconds, 3), None
        if charge is not None:
            assert case.rule is not None
            # True count and exact time stay: under differential privacy they follow the records.
            examples, seconds = case.rule.public_size, float(math.ceil(result.seconds))
            spent = self._books.spent(case.key, charge)
        return Update(
            work=case.key,
            payload=payload,
            examples=examples,
            metrics=metrics,
            seconds=seconds,
            privacy=spent,
        )


def _job(case: Case, charge: Charge | None, base: Path) -> Job:
    order, rule = case.order, case.rule
    mechanism = measurement = None
    if charge is not None:
        assert rule is not None
        mechanism = mechanism_of(order, charge, rule.public_size)
        measurement = measurement_of(order, charge, rule.public_size)
    return Job(
        kind=order.kind,
        task=order.task,
        task_parameters=order.task_parameters,
        training=order.training,
        seed=order.seed,
        site=order.site,
        round=order.round,
        base=str(base),
        source=case.source if case.reads_data else None,
        mechanism=mechanism,
        measurement=measurement,
        begin_by=begin_by(case),
    )
