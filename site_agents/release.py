"""Letting a finished update go.

Nothing leaves before a person agreed, where the policy asks for one, and the audit chain has it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.model import BlobRef, TensorSpec
from fedfactory.contracts.updates import Reply, Update
from fedfactory.wire.arrays import ArrayFile, file_ref
from site_agents.approvals import Approvals, work_id
from site_agents.audit.entries import released
from site_agents.books import Books
from site_agents.control import state
from site_agents.egress import HeldBack, check_update
from site_agents.jobs.job import UPDATE, read_result
from site_agents.leaving import Leaving, leaving
from site_agents.permission import Asked, revoked_operators
from site_agents.policy import needs_approval
from site_agents.refused import RefusedError

log = logging.getLogger("site_agents.release")

Send = Callable[[Path, BlobRef], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Finished work that waits for a person of the site; ask again when they have decided."""

    work_id: str


class Release:
    """Sends one site's finished updates. Safe to use from several threads."""

    def __init__(self, *, home: Path, books: Books, approvals: Approvals, send: Send) -> None:
        self._home = home
        self._books = books
        self._approvals = approvals
        self._send = send

    def release(
        self, asked: Asked, update: Update, folder: Path, *, fresh: bool
    ) -> Reply | Pending:
        """Write down what leaves, then send the arrays; the reply itself follows.

        `fresh`: the guard read the file just now. Else hours may have passed, and it is read again.

        Raises:
            RefusedError: it stays here.
            BooksError: it could not be written down.
            FedfactoryError, OSError: the arrays could not be sent.
        """
        if state(self._home).name == "killed":
            raise RefusedError("killed", "the administrator stopped all work")
        if asked.facts.operator_key in revoked_operators(self._home):
            raise RefusedError("not_authorised", "the operator was revoked while it was worked on")
        work = work_id(asked.key)
        actor = self._let_go(work, asked, update, folder)
        if actor is None:
            return Pending(work_id=work)
        path, blob = folder / UPDATE, update.payload.blob if update.payload else None
        if blob is not None and not fresh and file_ref(path) != blob:
            raise RefusedError("egress_refused", "the file is no longer the one that was cleared")
        lineage, epsilon = self._paid(asked)
        standing = self._books.standing(asked.key)
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
                standing=standing,
            )
        )
        if blob is not None:
            self._send(path, blob)
        self._approvals.settle(work)
        return Reply(update=update, refusal=None, anchor=anchor, standing=standing)

    def _paid(self, asked: Asked) -> tuple[str | None, float | None]:
        """Return the lineage that paid and with which epsilon; without DP, the data's and None."""
        return self._books.paid(asked.key) or (asked.rule.lineage if asked.rule else None, None)

    def _let_go(self, work: str, asked: Asked, update: Update, folder: Path) -> str | None:
        """Return who let the result go: the agent, or a person; None while nobody has decided."""
        order, approvals = asked.order, self._approvals
        decision = approvals.decision(work, digest_of(update))
        if decision is not None and not decision.approved:
            approvals.settle(work)
            raise RefusedError("policy_egress", f"denied by {decision.by}: {decision.reason}")
        if decision is not None:
            return decision.by
        before = approvals.approved_before(order.plan_digest, order.kind)
        if not needs_approval(asked.policy, asked.sending, approved_before=before):
            return "agent"
        approvals.request(work, self._leaving(folder, asked, update))
        log.info("%s waits for a person: site-agent approvals", work)
        return None

    def _leaving(self, folder: Path, asked: Asked, update: Update) -> Leaving:
        declared: tuple[TensorSpec, ...] = ()
        tensors: tuple[TensorSpec, ...] = ()
        norm = None
        if update.payload is not None:
            spec = read_result(folder).declared
            assert spec is not None
            found = check_update(folder / UPDATE, spec, update.payload.blob, None)
            if isinstance(found, HeldBack):
                raise RefusedError("egress_refused", found.finding)
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
