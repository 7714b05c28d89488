"""One order's way through the site: order, policy, ledger, executor, guard, audit, answer.

Each step is a call that may end the way with a refusal by code; the reason stays in the site's log.
Nothing is uploaded before the guard cleared it and the audit chain holds it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import FedfactoryError, ProtocolError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Delivery, Order, WorkKey
from fedfactory.contracts.updates import Payload, Refusal, Reply, Update
from fedfactory.tasks.table import check_task
from site_agents.audit import AuditChain
from site_agents.egress import HeldBack, check_metrics, check_update
from site_agents.executors.executor import Executor, JobTimeoutError, WorkerLostError
from site_agents.jobs.job import UPDATE, Job, JobResult, job_folder
from site_agents.ledger import WorkConflictError, WorkLedger
from site_agents.policy import Policy, judge

log = logging.getLogger("site_agents.pipeline")

KEEP_JOBS: Final = 4


class _RefusedError(Exception):
    def __init__(self, code: str, finding: str) -> None:
        super().__init__(f"{code}: {finding}")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How base models come in and updates go out."""

    fetch: Callable[[BlobRef], Path]
    send: Callable[[Path, BlobRef], None]


class Pipeline:
    """Answers orders, one at a time."""

    def __init__(
        self,
        *,
        site: str,
        policy: Policy,
        ledger: WorkLedger,
        audit: AuditChain,
        executor: Executor,
        transfer: Transfer,
        spool: Path,
        timeout_s: float,
    ) -> None:
        self._site = site
        self._policy = policy
        self._ledger = ledger
        self._audit = audit
        self._executor = executor
        self._transfer = transfer
        self._spool = spool
        self._timeout_s = timeout_s

    def answer(self, text: str) -> Reply | None:
        """Return the reply to one delivery; None if it does not even name its work."""
        try:
            delivery = from_json(Delivery, text)
        except (ProtocolError, UsageError) as error:
            log.warning("a message is no order: %s", error)
            return None
        order = delivery.order
        key = order.key()
        try:
            reply = self._ledger.finished(key) or self._work(order, key, delivery.expires_at)
            self._release(key, reply)
        except WorkConflictError:
            return self._refusal(key, "conflict", "another order for this round was begun")
        except _RefusedError as refused:
            return self._refusal(key, refused.code, str(refused))
        except FedfactoryError as error:
            finding = f"{error} {error.diagnostic or ''}"
            return self._refusal(key, "transfer_failed", finding)
        return reply

    def _work(self, order: Order, key: WorkKey, expires_at: float) -> Reply:
        self._admit(order, expires_at)
        base = self._transfer.fetch(order.base)
        self._ledger.reserve(key)
        folder = job_folder(self._spool, key)
        result = self._execute(order, base, folder, expires_at)
        reply = Reply(update=self._guard(order, key, result, folder), refusal=None)
        self._ledger.commit(key, reply)
        self._prune()
        return reply

    def _prune(self) -> None:
        """Keep the newest few job folders: the last updates can be sent again, older ones go."""
        folders = sorted(self._spool.iterdir(), key=lambda folder: folder.stat().st_mtime)
        for old in folders[:-KEEP_JOBS]:
            shutil.rmtree(old, ignore_errors=True)

    def _admit(self, order: Order, expires_at: float) -> None:
        if order.site != self._site:
            raise _RefusedError("bad_order", f"addressed to '{order.site}'")
        if (order.training is None) != (order.kind == "evaluate"):
            raise _RefusedError("bad_order", "training parameters belong to 'train' alone")
        if time.time() > expires_at:
            raise _RefusedError("expired", "arrived after its time")
        try:
            examples = self._executor.examples(order.kind)
        except (WorkerLostError, JobTimeoutError) as error:
            raise _RefusedError("worker_lost", str(error)) from error
        verdict = judge(self._policy, order, examples=examples)
        if verdict.code is not None:
            raise _RefusedError(verdict.code, f"policy clause '{verdict.clause}'")
        try:
            check_task(order.task, order.task_parameters)
        except UsageError as error:
            raise _RefusedError("bad_parameters", str(error)) from error

    def _execute(self, order: Order, base: Path, folder: Path, expires_at: float) -> JobResult:
        job = Job(
            kind=order.kind,
            task=order.task,
            task_parameters=order.task_parameters,
            training=order.training,
            seed=order.seed,
            site=order.site,
            round=order.round,
            base=str(base),
        )
        timeout_s = min(self._timeout_s, max(1.0, expires_at - time.time()))
        for attempt in (1, 2):
            try:
                result = self._executor.run(job, folder, timeout_s)
            except WorkerLostError as error:
                log.warning("attempt %d: %s", attempt, error)
                continue
            except JobTimeoutError as error:
                raise _RefusedError("timed_out", str(error)) from error
            if result.failure is not None:
                raise _RefusedError(result.failure, "the worker's log says why")
            return result
        raise _RefusedError("worker_lost", "the worker died twice on this order")

    def _guard(self, order: Order, key: WorkKey, result: JobResult, folder: Path) -> Update:
        metrics = check_metrics(result.metrics, self._policy.metrics)
        if isinstance(metrics, HeldBack):
            raise _RefusedError("egress_refused", metrics.finding)
        payload = None
        if order.kind == "train":
            assert result.declared is not None
            assert result.update is not None
            if held := check_update(folder / UPDATE, result.declared, result.update):
                raise _RefusedError("egress_refused", held.finding)
            payload = Payload(form="delta", blob=result.update)
        return Update(
            work=key,
            payload=payload,
            examples=result.examples,
            metrics=metrics,
            seconds=result.seconds,
        )

    def _release(self, key: WorkKey, reply: Reply) -> None:
        """Write down what leaves, then send the arrays; the reply itself follows."""
        update = reply.update
        assert update is not None
        self._audit.append(_audit_entry(key, update))
        if update.payload is not None:
            path = job_folder(self._spool, key) / UPDATE
            self._transfer.send(path, update.payload.blob)

    def _refusal(self, key: WorkKey, code: str, finding: str) -> Reply:
        log.warning("round %d %s refused: %s", key.round, key.kind, finding)
        return Reply(update=None, refusal=Refusal(work=key, code=code))


def _audit_entry(key: WorkKey, update: Update) -> Mapping[str, Any]:
    blob = update.payload.blob if update.payload else None
    return {
        "at": time.time(),
        "to": key.coordinator,
        "run": key.run_id,
        "round": key.round,
        "kind": key.kind,
        "order": key.order_digest,
        "digest": blob.digest if blob else None,
        "bytes": blob.bytes if blob else 0,
        "metrics": sorted(update.metrics),
        "examples": update.examples is not None,
    }
