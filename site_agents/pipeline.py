"""One order's way through the site: order, policy, ledger, executor, guard, audit, answer.

Each step may end the way with a refusal by code; the reason stays in the site's log. Nothing leaves
before the ledger holds what it cost, the guard cleared it, a person let it go where the policy asks
for one, and the audit chain has it.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from fedfactory.contracts.codec import digest_of, from_json
from fedfactory.contracts.errors import FedfactoryError, IdentityError, ProtocolError, UsageError
from fedfactory.contracts.model import BlobRef, TensorSpec
from fedfactory.contracts.orders import Order, WorkKey
from fedfactory.contracts.plans import Anchor, Delivery, Sending, SignedEnding
from fedfactory.contracts.updates import Payload, Refusal, Reply, Update
from fedfactory.identity.signing import verify
from fedfactory.privacy.budget import WorkName, work_name
from fedfactory.privacy.entries import Charge
from fedfactory.tasks.table import check_task, load_task
from fedfactory.tasks.task import Task
from fedfactory.wire.arrays import ArrayFile, file_ref
from site_agents.admission import measurement_of, mechanism_of
from site_agents.approvals import Approvals, work_id
from site_agents.audit.entries import refused, released
from site_agents.books import Books, BooksError, BudgetError
from site_agents.control import state
from site_agents.egress import HeldBack, check_metrics, check_update
from site_agents.ending import end_run
from site_agents.executors.executor import (
    Executor,
    JobTimeoutError,
    NeverBegunError,
    NoDataError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.failures import note_failure, too_many_failures
from site_agents.jobs.job import RESULT, UPDATE, Job, JobResult, job_folder, read_result
from site_agents.leaving import Leaving, leaving
from site_agents.ledger import LedgerError, WorkConflictError
from site_agents.policy import DataRule, Facts, Policy, PolicyFileError, judge, needs_approval
from site_agents.policy_check import open_declarations
from site_agents.policy_file import load_policy, local_minute

log = logging.getLogger("site_agents.pipeline")

MAX_ORDER_CHARS: Final = 1_000_000
KEEP_JOBS: Final = 4
KEEP_REFUSED: Final = 20
ATTEMPTS: Final = 2
POLICY_FILE: Final = "policy.yaml"
AFTER_DATA: Final = ("timed_out", "worker_lost", "egress_refused", "work_failed", "bad_model")


class _RefusedError(Exception):
    def __init__(self, code: str, finding: str) -> None:
        super().__init__(f"{code}: {finding}")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Finished work that waits for a person of the site; ask again when they have decided."""

    work_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How base models come in, to stay while they are in use, and updates go out."""

    fetch: Callable[[BlobRef], AbstractContextManager[Path]]
    send: Callable[[Path, BlobRef], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """An order that the policy allows, and what it is allowed on."""

    sending: Sending
    key: WorkKey
    policy: Policy
    source: str | None
    rule: DataRule | None
    facts: Facts

    @property
    def order(self) -> Order:
        return self.sending.order

    @property
    def private(self) -> bool:
        return self.order.privacy is not None


class Pipeline:
    """Answers orders. Safe to use from several threads; one unit of work is done by one of them."""

    def __init__(
        self,
        *,
        site: str,
        home: Path,
        books: Books,
        executor: Executor,
        transfer: Transfer,
        timeout_s: float,
    ) -> None:
        self._site = site
        self._home = home
        self._books = books
        self._executor = executor
        self._transfer = transfer
        self._spool = home / "spool" / "jobs"
        self._timeout_s = timeout_s
        self._approvals = Approvals(home)
        self._lock = threading.Lock()
        self._turns: WeakValueDictionary[WorkName, threading.Lock] = WeakValueDictionary()
        self._in_hand: Counter[str] = Counter()

    def answer(self, text: str) -> Reply | Pending | Anchor | None:
        """Return the answer to one message; None if it does not even name its work."""
        if len(text) > MAX_ORDER_CHARS:
            log.warning("a message of %d characters is no order", len(text))
            return None
        try:
            delivery = from_json(Delivery, text)
        except (ProtocolError, UsageError) as error:
            return self._end(text, error)
        key = delivery.sending.order.key()
        folder = job_folder(self._spool, key).name
        with self._lock:
            turn = self._turns.setdefault(work_name(key), threading.Lock())
            self._in_hand[folder] += 1
        try:
            with turn:
                return self._answer(delivery, key)
        except _RefusedError as error:
            self._keep_refused(key, text)
            return self._refusal(delivery, key, error)
        finally:
            with self._lock:
                self._in_hand[folder] -= 1

    def _end(self, text: str, no_order: FedfactoryError) -> Anchor | None:
        try:
            signed = from_json(SignedEnding, text)
        except (ProtocolError, UsageError):
            log.warning("a message is no order: %s", no_order)
            return None
        policy_file = self._home / POLICY_FILE
        return end_run(signed, site=self._site, policy_file=policy_file, books=self._books)

    def _answer(self, delivery: Delivery, key: WorkKey) -> Reply | Pending:
        try:
            asked = self._authorise(delivery, key)
            self._books.check(delivery.sending.receipt)
            update = self._books.finished(key)
            fresh = update is None
            if update is None:
                self._may_begin(asked)
                update = self._work(asked)
            return self._release(asked, update, fresh=fresh)
        except WorkConflictError as error:
            raise _RefusedError("conflict", "another order for this round was begun") from error
        except (BooksError, LedgerError) as error:
            raise _RefusedError("books_broken", str(error)) from error
        except BudgetError as error:
            raise _RefusedError("budget_exhausted", str(error)) from error
        except (FedfactoryError, OSError) as error:
            finding = f"{error} {getattr(error, 'diagnostic', None) or ''}"
            raise _RefusedError("transfer_failed", finding) from error

    # ---- may it be done? -----------------------------------------------------------------------

    def _authorise(self, delivery: Delivery, key: WorkKey) -> _Asked:
        """Check who asks, and hold the order against the site's own policy as it is now."""
        sending = delivery.sending
        try:
            coordinator = verify(sending, delivery.signature)
            operator = verify(sending.plan.terms, sending.plan.signature)
        except IdentityError as error:
            raise _RefusedError("not_authorised", str(error)) from error
        try:
            policy = load_policy(self._home / POLICY_FILE)
        except PolicyFileError as error:
            raise _RefusedError("no_policy", str(error)) from error
        source, now = policy.source_for(sending.order.task), time.time()
        asked = _Asked(
            sending=sending,
            key=key,
            policy=policy,
            source=source,
            rule=policy.data[source] if source else None,
            facts=Facts(
                now=now,
                local_minute=local_minute(policy, now),
                coordinator_key=coordinator,
                operator_key=operator,
                site=self._site,
                train_examples=None,
                evaluate_examples=None,
                gpu_hours_of_run=self._books.hours(key),
                finished=self._books.is_finished(key),
            ),
        )
        _judge(asked, asked.facts)
        return asked

    def _may_begin(self, asked: _Asked) -> None:
        """Check what stands against new work, though not against sending what is done."""
        control = state(self._home)
        if control.name != "running":
            code = "killed" if control.name == "killed" else "paused"
            raise _RefusedError(code, f"{control.name} by {control.by}: {control.reason}")
        order = asked.order
        try:
            task = check_task(order.task, order.task_parameters)
        except UsageError as error:
            raise _RefusedError("bad_parameters", ascii(str(error))) from error
        if asked.private:
            self._may_begin_privately(asked, task)
            return  # private data is not touched, not even to count it, before it is paid for
        if task.schema(order.task_parameters) is None:
            return
        assert asked.source is not None
        try:
            found = self._executor.describe(asked.source, order.task, order.task_parameters)
        except NoDataError as error:
            raise _RefusedError("no_data", str(error)) from error
        except (WorkerLostError, JobTimeoutError) as error:
            raise _RefusedError("worker_lost", str(error)) from error
        except (NeverBegunError, WorkStoppedError) as error:
            raise _RefusedError("paused", str(error)) from error
        _judge(
            asked,
            replace(asked.facts, train_examples=found.train, evaluate_examples=found.evaluate),
        )

    def _may_begin_privately(self, asked: _Asked, task: Task) -> None:
        """Check that work could not fail, seen by all, because of a record that somebody chose."""
        assert asked.rule is not None
        if obstacle := task.private_obstacle(asked.order.task_parameters):
            raise _RefusedError("bad_parameters", obstacle)
        if left_open := open_declarations(asked.policy.tasks[task.name], task):
            raise _RefusedError("policy_parameters", left_open)
        if too_many := too_many_failures(self._home, asked.rule.lineage):
            raise _RefusedError("paused", too_many)

    # ---- doing it ------------------------------------------------------------------------------

    def _work(self, asked: _Asked) -> Update:
        folder = job_folder(self._spool, asked.key)
        try:
            charge, result = self._left_behind(asked, folder) or self._execute(asked, folder)
            update = self._guard(asked, charge, result, folder)
        except _RefusedError as error:
            if asked.private and error.code in AFTER_DATA:
                self._note_failure(asked)
                # Which way work on private data failed says something of the data.
                raise _RefusedError("work_failed", str(error)) from error
            raise
        self._books.commit(asked.key, update)
        self._prune()
        return update

    def _note_failure(self, asked: _Asked) -> None:
        assert asked.rule is not None
        try:
            with self._lock:
                note_failure(self._home, asked.rule.lineage)
        except (ProtocolError, OSError) as error:
            log.error("the failure could not be counted: %s", error)  # noqa: TRY400

    def _left_behind(self, asked: _Asked, folder: Path) -> tuple[Charge | None, JobResult] | None:
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

    def _execute(self, asked: _Asked, folder: Path) -> tuple[Charge | None, JobResult]:
        with self._transfer.fetch(asked.order.base) as base:
            return self._attempt(asked, base, folder)

    def _attempt(self, asked: _Asked, base: Path, folder: Path) -> tuple[Charge | None, JobResult]:
        """Reserve and run; every attempt is reserved anew, for each may have touched the data."""
        for attempt in range(1, ATTEMPTS + 1):
            charge = self._books.reserve(
                asked.order, asked.sending.plan.terms, asked.policy, asked.rule
            )
            try:
                return charge, self._run(asked, charge, base, folder)
            except NeverBegunError as error:
                self._books.refund(asked.key)
                raise _RefusedError("paused", str(error)) from error
            except WorkStoppedError as error:
                raise _RefusedError("killed", str(error)) from error
            except JobTimeoutError as error:
                raise _RefusedError("timed_out", str(error)) from error
            except WorkerLostError as error:
                log.warning("attempt %d: %s", attempt, error)
            except (FedfactoryError, OSError) as error:
                raise _RefusedError("work_failed", str(error)) from error
        raise _RefusedError("worker_lost", f"the worker was lost {ATTEMPTS} times")

    def _run(self, asked: _Asked, charge: Charge | None, base: Path, folder: Path) -> JobResult:
        order, rule = asked.order, asked.rule
        mechanism = measurement = None
        reads_data = load_task(order.task).schema(order.task_parameters) is not None
        if charge is not None:
            assert rule is not None
            mechanism = mechanism_of(order, charge, rule.public_size)
            measurement = measurement_of(order, charge, rule.public_size)
        job = Job(
            kind=order.kind,
            task=order.task,
            task_parameters=order.task_parameters,
            training=order.training,
            seed=order.seed,
            site=order.site,
            round=order.round,
            base=str(base),
            source=asked.source if reads_data else None,
            mechanism=mechanism,
            measurement=measurement,
        )
        timeout_s = min(self._timeout_s, max(1.0, asked.sending.expires_at - time.time()))
        result = self._executor.run(job, folder, timeout_s)
        if result.failure is not None:
            raise _RefusedError(result.failure, "the worker's log says why")
        return result

    def _guard(
        self, asked: _Asked, charge: Charge | None, result: JobResult, folder: Path
    ) -> Update:
        order, policy = asked.order, asked.policy
        # Of private training no metric leaves: what a task says of it would be without noise.
        found_metrics = {} if charge and order.kind == "train" else result.metrics
        metrics = check_metrics(found_metrics, policy.metrics)
        if isinstance(metrics, HeldBack):
            raise _RefusedError("egress_refused", metrics.finding)
        payload = None
        if order.kind == "train":
            assert result.declared is not None
            assert result.update is not None
            most = asked.sending.plan.terms.max_update_norm_l2
            found = check_update(folder / UPDATE, result.declared, result.update, most)
            if isinstance(found, HeldBack):
                raise _RefusedError("egress_refused", found.finding)
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

    # ---- letting it go -------------------------------------------------------------------------

    def _release(self, asked: _Asked, update: Update, *, fresh: bool) -> Reply | Pending:
        """Write down what leaves, then send the arrays; the reply itself follows.

        `fresh`: the guard read the file just now. Else hours may have passed, and it is read again.
        """
        if state(self._home).name == "killed":
            raise _RefusedError("killed", "the administrator stopped all work")
        work = work_id(asked.key)
        actor = self._let_go(work, asked, update)
        if actor is None:
            return Pending(work_id=work)
        path, blob = self._spool / work / UPDATE, update.payload.blob if update.payload else None
        if blob is not None and not fresh and file_ref(path) != blob:
            raise _RefusedError("egress_refused", "the file is no longer the one that was cleared")
        lineage, epsilon = self._paid(asked)
        anchor = self._books.record(
            released(
                update,
                destination=asked.facts.coordinator_key,
                delivery=asked.sending.number,
                lineage=lineage,
                epsilon_charged=epsilon,
                policy=asked.policy.version,
                clause=f"egress: {asked.policy.egress}",
                actor=actor,
            )
        )
        if blob is not None:
            self._transfer.send(path, blob)
        self._approvals.settle(work)
        return Reply(update=update, refusal=None, anchor=anchor)

    def _paid(self, asked: _Asked) -> tuple[str | None, float | None]:
        """Return the lineage that paid and with which epsilon; without DP, the data's and None."""
        return self._books.paid(asked.key) or (asked.rule.lineage if asked.rule else None, None)

    def _let_go(self, work: str, asked: _Asked, update: Update) -> str | None:
        """Return who let the result go: the agent, or a person; None while nobody has decided."""
        order, approvals = asked.order, self._approvals
        decision = approvals.decision(work, digest_of(update))
        if decision is not None and not decision.approved:
            approvals.settle(work)
            raise _RefusedError("policy_egress", f"denied by {decision.by}: {decision.reason}")
        if decision is not None:
            return decision.by
        before = approvals.approved_before(order.plan_digest, order.kind)
        if not needs_approval(asked.policy, asked.sending, approved_before=before):
            return "agent"
        approvals.request(work, self._leaving(self._spool / work, asked, update))
        log.info("%s waits for a person: site-agent approvals", work)
        return None

    def _leaving(self, folder: Path, asked: _Asked, update: Update) -> Leaving:
        declared: tuple[TensorSpec, ...] = ()
        tensors: tuple[TensorSpec, ...] = ()
        norm = None
        if update.payload is not None:
            spec = read_result(folder).declared
            assert spec is not None
            found = check_update(folder / UPDATE, spec, update.payload.blob, None)
            if isinstance(found, HeldBack):
                raise _RefusedError("egress_refused", found.finding)
            with ArrayFile(folder / UPDATE) as file:
                tensors = file.spec.tensors
            declared, norm = spec.update_spec().tensors, found.norm_l2
        lineage, epsilon = self._paid(asked)
        return leaving(
            asked.sending,
            update,
            declared=declared,
            tensors=tensors,
            norm_l2=norm,
            source=asked.source,
            lineage=lineage,
            epsilon_charged=epsilon,
        )

    def _refusal(self, delivery: Delivery, key: WorkKey, why: _RefusedError) -> Reply:
        """Write down that a code leaves, if the books still take it: they may be the reason."""
        log.warning("round %d %s refused: %s", key.round, key.kind, why)
        refusal, anchor = Refusal(work=key, code=why.code), None
        try:
            anchor = self._books.record(
                refused(
                    refusal,
                    destination=delivery.sending.order.coordinator,
                    delivery=delivery.sending.number,
                    finding=str(why),
                )
            )
        except BooksError as error:
            log.error("the refusal could not be recorded: %s", error)  # noqa: TRY400
        return Reply(update=None, refusal=refusal, anchor=anchor)

    def _keep_refused(self, key: WorkKey, text: str) -> None:
        """Keep the newest refused deliveries, for `site-agent policy explain`."""
        folder = self._home / "refused"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            (folder / f"{job_folder(folder, key).name}.json").write_text(text)
            _keep_newest(folder, KEEP_REFUSED)
        except OSError as error:
            log.warning("the refused order could not be kept: %s", error)

    def _prune(self) -> None:
        """Keep the newest few job folders: the last updates can be sent again, older ones go."""
        with self._lock:
            in_hand = {name for name, count in self._in_hand.items() if count}
            _keep_newest(self._spool, KEEP_JOBS, but=in_hand | self._approvals.pending())


def _judge(asked: _Asked, facts: Facts) -> None:
    verdict = judge(asked.policy, asked.sending, facts)
    if verdict.code is not None:
        raise _RefusedError(verdict.code, f"{verdict.clause}: {verdict.finding}")


def _keep_newest(folder: Path, count: int, *, but: Collection[str] = ()) -> None:
    entries = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in entries[:-count]:
        if old.name in but:
            continue
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)
