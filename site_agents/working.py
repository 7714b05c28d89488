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
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import FedfactoryError, IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.update_norms import norm_bound
from fedfactory.contracts.updates import Payload, Update
from fedfactory.privacy.entries import Charge
from fedfactory.privacy.sampling import noising
from fedfactory.tasks.table import load_task
from fedfactory.wire.arrays import file_ref
from fedfactory.wire.base_norm import read_base
from site_agents.admission import measurement_of, mechanism_of, rehearsal_of_order
from site_agents.books import Books
from site_agents.egress import HeldBack, check_metrics, check_update
from site_agents.executors.executor import (
    Executor,
    JobTimeoutError,
    NeverBegunError,
    UnfitWorkError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.failures import note_failure, too_many_failures
from site_agents.jobs.job import RESULT, UPDATE, Job, JobResult, JobTrial, read_result
from site_agents.permission import Asked, judge_base
from site_agents.policy import plan_clauses
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

    def work(self, asked: Asked, folder: Path) -> Update:
        """Do it, in a folder of its own; the update is in the ledger when this returns.

        Raises:
            RefusedError: it could not be done.
            BudgetError, LedgerError: it could not be paid.
            FedfactoryError, OSError: the base model did not come.
        """
        charge, result = self._left_behind(asked, folder) or self._execute(asked, folder)
        with self._after_data(asked):
            bound = self.norm_bound(asked, charge) if asked.order.kind == "train" else 0.0
            update = self._guard(asked, charge, result, folder, bound)
        self._books.commit(asked.key, update)
        return update

    @contextmanager
    def _after_data(self, asked: Asked) -> Iterator[None]:
        """Count a failure of private work, and let only one code of it out."""
        try:
            yield
        except RefusedError as error:
            if asked.private and error.code in AFTER_DATA:
                self._note_failure(asked)
                # Which way work on private data failed says something of the data.
                raise RefusedError("work_failed", str(error)) from error
            raise

    def _note_failure(self, asked: Asked) -> None:
        assert asked.rule is not None
        try:
            with self._counting_failures:
                note_failure(self._home, asked.rule.lineage, asked.order.coordinator)
        except (ProtocolError, OSError) as error:
            log.error("the failure could not be counted: %s", error)  # noqa: TRY400

    def _left_behind(self, asked: Asked, folder: Path) -> tuple[Charge | None, JobResult] | None:
        """Return what an agent left that ended after the work and before its commit: it is paid."""
        if not (self._books.is_begun(asked.key) and (folder / RESULT).is_file()):
            return None
        try:
            result = read_result(folder)
            whole = result.update is None or file_ref(folder / UPDATE) == result.update
        except (ProtocolError, OSError):
            whole = False
        if not whole:
            log.warning("%s: what an earlier agent left is not whole: it is done anew", folder)
            return None
        return None if result.failure else (self._books.charged(asked.key), result)

    def _execute(self, asked: Asked, folder: Path) -> tuple[Charge | None, JobResult]:
        with self._fetch(asked.order.base) as base:
            judge_base(asked, base)
            if asked.private:
                self._rehearse(asked, base)
            with self._after_data(asked):
                return self._attempt(asked, base, folder)

    def _rehearse(self, asked: Asked, base: Path) -> None:
        """Refuse, uncharged, what cannot be done privately whatever the records are."""
        assert asked.rule is not None
        order = asked.order
        trial = JobTrial(
            task=order.task,
            task_parameters=order.task_parameters,
            base=str(base),
            rehearsal=rehearsal_of_order(order, asked.rule.public_size),
            begin_by=_begin_by(asked),
        )
        try:
            self._executor.rehearse(trial)
        except UnfitWorkError as error:
            raise RefusedError(error.code, str(error)) from error
        except (WorkerLostError, JobTimeoutError) as error:
            raise RefusedError("worker_lost", str(error)) from error
        except (NeverBegunError, WorkStoppedError) as error:
            raise RefusedError("paused", str(error)) from error

    def _attempt(self, asked: Asked, base: Path, folder: Path) -> tuple[Charge | None, JobResult]:
        """Reserve and run; every attempt is reserved anew, for each may have touched the data."""
        for attempt in range(1, ATTEMPTS + 1):
            if obstacle := self._obstacle(asked):
                if attempt == 1:
                    raise obstacle
                break
            rule = asked.rule if _reads_data(asked) else None  # whose records are worked on
            charge = self._books.reserve(
                asked.key, asked.order, asked.sending.plan.terms, asked.policy, rule
            )
            try:
                return charge, self._run(asked, charge, base, folder)
            except NeverBegunError as error:
                self._books.refund(asked.key)
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

    def _obstacle(self, asked: Asked) -> RefusedError | None:
        """Return why private work is not reserved now: time passed since the policy was asked.

        Minutes may lie between: the base model was fetched, another attempt ran.
        """
        if not asked.private:
            return None
        assert asked.rule is not None
        if late := plan_clauses.too_late(asked.sending, time.time()):
            return RefusedError("expired", late)
        lineage, coordinator = asked.rule.lineage, asked.order.coordinator
        if too_many := too_many_failures(self._home, lineage, coordinator):
            return RefusedError("paused", too_many)
        return None

    def _run(self, asked: Asked, charge: Charge | None, base: Path, folder: Path) -> JobResult:
        timeout_s = self._timeout_s
        if not asked.private:  # by a coordinator's clock, it could have every order fail, unpaid
            timeout_s = min(timeout_s, max(1.0, asked.sending.expires_at - time.time()))
        result = self._executor.run(_job(asked, charge, base), folder, timeout_s)
        if result.failure is not None:
            raise RefusedError(result.failure, "the worker's log says why")
        return result

    def norm_bound(self, asked: Asked, charge: Charge | None) -> float:
        """Return the bound of the update's norm, which the coordinator computes alike."""
        order, terms = asked.order, asked.sending.plan.terms
        assert order.training is not None
        found = None
        if charge is not None:
            assert asked.rule is not None
            sigma = charge.cost.noise_multiplier
            found = noising(order.training, asked.rule.public_size, sigma)
        with self._fetch(order.base) as path:
            try:
                base = read_base(path, terms)
            except IntegrityError as error:
                raise RefusedError("bad_model", str(error)) from error
        return norm_bound(terms, order.training, base, found)

    def _guard(
        self,
        asked: Asked,
        charge: Charge | None,
        result: JobResult,
        folder: Path,
        max_norm_l2: float,
    ) -> Update:
        order, policy = asked.order, asked.policy
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
            assert asked.rule is not None
            # True count and exact time stay: under differential privacy they follow the records.
            examples, seconds = asked.rule.public_size, float(math.ceil(result.seconds))
            spent = self._books.spent(asked.key, charge)
        return Update(
            work=asked.key,
            payload=payload,
            examples=examples,
            metrics=metrics,
            seconds=seconds,
            privacy=spent,
        )


def _reads_data(asked: Asked) -> bool:
    return load_task(asked.order.task).data_schema(asked.order.task_parameters) is not None


def _begin_by(asked: Asked) -> float | None:
    """Return when private work is too late to begin: it is paid for, and others hold devices."""
    return asked.sending.expires_at - plan_clauses.LEAST_LEFT_S if asked.private else None


def _job(asked: Asked, charge: Charge | None, base: Path) -> Job:
    order, rule = asked.order, asked.rule
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
        source=asked.source if _reads_data(asked) else None,
        mechanism=mechanism,
        measurement=measurement,
        begin_by=_begin_by(asked),
    )
