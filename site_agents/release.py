"""Letting a finished update go.

Nothing leaves before a person agreed, where the policy asks for one, and the audit chain has it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from fedfactory.contracts.model import BlobRef, TensorSpec
from fedfactory.contracts.updates import Reply, Update
from fedfactory.wire.arrays import ArrayFile
from site_agents.approvals import Approvals, Pending, work_id
from site_agents.audit.entries import released
from site_agents.books import Books
from site_agents.egress import HeldBack, check_update
from site_agents.gate_case import Case, Finished
from site_agents.gates import RELEASE, parts, pass_through
from site_agents.jobs.job import UPDATE, read_result
from site_agents.leaving import Leaving, leaving
from site_agents.policy import needs_approval
from site_agents.refused import RefusedError

log = logging.getLogger("site_agents.release")

Send = Callable[[Path, BlobRef], None]


class Release:
    """Sends one site's finished updates. Safe to use from several threads."""

    def __init__(self, *, books: Books, approvals: Approvals, send: Send) -> None:
        self._books = books
        self._approvals = approvals
        self._send = send

    def release(self, case: Case, update: Update, folder: Path, *, fresh: bool) -> Reply | Pending:
        """Write down what leaves, then send the arrays; the reply itself follows.

        `fresh`: the guard read the file just now. Else hours may have passed, and it is read again.

        Raises:
            RefusedError: it stays here.
            BooksError: it could not be written down.
            FedfactoryError, OSError: the arrays could not be sent.
        """
        path, work = folder / UPDATE, work_id(case.key)
        case.finished = Finished(update=update, file=path, cleared=fresh)
        try:
            pass_through(parts(RELEASE), case)
        except RefusedError as error:
            if error.code == "policy_egress":  # nothing waits any more
                self._approvals.settle(work)
            raise
        actor = self._let_go(work, case, update, folder)
        if actor is None:
            return Pending(work_id=work)
        lineage, epsilon = self._paid(case)
        standing = self._books.standing(case.key)
        anchor = self._books.record(
            released(
                update,
                destination=case.coordinator_key,
                delivery=case.sending.number,
                lineage=lineage,
                epsilon_charged=epsilon,
                policy=case.policy.version,
                clause=f"egress: {case.policy.egress}",
                actor=actor,
                standing=standing,
            )
        )
        if update.payload is not None:
            self._send(path, update.payload.blob)
        self._approvals.settle(work)
        return Reply(update=update, refusal=None, anchor=anchor, standing=standing)

    def _paid(self, case: Case) -> tuple[str | None, float | None]:
        """Return the lineage that paid and with which epsilon; without DP, the data's and None."""
        return self._books.paid(case.key) or (case.rule.lineage if case.rule else None, None)

    def _let_go(self, work: str, case: Case, update: Update, folder: Path) -> str | None:
        """Return who let the result go: the agent, or a person; None while nobody has decided."""
        order, approvals = case.order, self._approvals
        if case.decision is not None:  # no denial: a gate has just read this one
            return case.decision.by
        before = approvals.approved_before(order.terms_digest, order.kind)
        if not needs_approval(case.policy, case.sending, approved_before=before):
            return "agent"
        approvals.request(work, self._leaving(folder, case, update))
        log.info("%s waits for a person: site-agent approvals", work)
        return None

    def _leaving(self, folder: Path, case: Case, update: Update) -> Leaving:
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
        lineage, epsilon = self._paid(case)
        return leaving(
            case.sending,
            update,
            declared=declared,
            tensors=tensors,
            norm_l2=norm,
            source=case.source,
            lineage=lineage,
            epsilon_charged=epsilon,
        )
