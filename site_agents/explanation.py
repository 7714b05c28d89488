"""What would happen to an order now, gate by gate, as the agent would ask; nothing is changed.

It knows all that the agent knows but what only a worker can tell, or the fetched base model. An
order that was refused before is judged by the time at which it came, and by policy and records as
they are now; what only a worker could tell then is taken from the audit chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import IntegrityError, ProtocolError, UsageError
from fedfactory.contracts.plans import SignedOrder
from fedfactory.contracts.updates import Update
from site_agents.approvals import Approvals
from site_agents.audit.reading import ReadChain
from site_agents.books_view import BooksError, BooksView
from site_agents.config import AgentConfig
from site_agents.gate_case import Case, Finished, Ground, UnjudgedError
from site_agents.gate_checks import safe
from site_agents.gates import BASE, BUDGET, GATES, NEW_WORK, RELEASE, Gate
from site_agents.jobs.job import UPDATE, job_folder
from site_agents.ledger import Ledger, LedgerError, WorkConflictError
from site_agents.policy import LogsMode, Policy, needs_approval
from site_agents.receipt_file import ReceiptFile
from site_agents.refused_before import RefusedBefore
from site_agents.second_place import SecondPlace

Outcome = Literal["passes", "REFUSES", "would refuse", "not known", "not asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one gate says of an order.

    Of several that refuse, the first decides, the others `would refuse`. `code` is what the refusal
    says to the coordinator. `clause` is what decides:
    the gate's own, or the exact key. `finding` says why, for people of the site.
    """

    part: str
    gate: str
    clause: str
    code: str
    outcome: Outcome
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Every gate in its order; the first that refuses decides.

    `signed_by` are the fingerprints of the coordinator's and the operator's key ("" where a
    signature is not valid). `logs` is what the policy lets an operator read of the run's record
    afterwards, None without a policy. `before` is the refusal of an order that came before.
    """

    delivery: SignedOrder
    signed_by: tuple[str, str]
    verdicts: tuple[Verdict, ...]
    waits_for_person: bool
    logs: LogsMode | None
    before: RefusedBefore | None

    @property
    def decides(self) -> Verdict | None:
        """The gate that refuses the order; None if it is allowed."""
        return next((one for one in self.verdicts if one.outcome == "REFUSES"), None)


def read_delivery(path: Path) -> SignedOrder | str:
    """Return the delivery in a file, or why it has not the form of an order.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return from_json(SignedOrder, raw)
    except (ProtocolError, UsageError) as error:
        return safe(f"{error} {error.diagnostic or ''}".strip())


def explain(
    config: AgentConfig, delivery: SignedOrder, before: RefusedBefore | None = None
) -> Explanation:
    """Ask of a delivery what the agent of this home would ask.

    One that was refused `before` is judged by the time at which it came.

    Raises:
        UsageError: the ledger lies on a network file system.
    """
    ledger: Ledger | None = None
    books: BooksView | BooksError
    try:
        ledger = Ledger.open(config.ledger)
        chain, second = ReadChain(config.home / "audit"), SecondPlace(config.second_place)
        books = BooksView(config.site, ledger, chain, ReceiptFile(config.home), second)
    except (LedgerError, IntegrityError) as error:
        books = BooksError(str(error))
    try:
        ground = Ground(
            site=config.site,
            home=config.home,
            sources=frozenset(config.data),
            books=books,
            worker=None,
        )
        case = Case.of_delivery(ground, delivery, delivery.envelope.order.key())
        return _explained(case, delivery, before)
    finally:
        if ledger is not None:
            ledger.close()


def _explained(case: Case, delivery: SignedOrder, before: RefusedBefore | None) -> Explanation:
    case.judged_at = before.came_at if before else None
    update = _update(case)
    if update is not None:
        file = job_folder(case.ground.home / "spool" / "jobs", case.key) / UPDATE
        case.finished = Finished(update=update, file=file, cleared=False)
    policy = case.policy_or_fault if isinstance(case.policy_or_fault, Policy) else None
    return Explanation(
        delivery=delivery,
        signed_by=(case.coordinator_key, case.operator_key),
        verdicts=tuple(_verdicts(case, before, done=update is not None)),
        waits_for_person=policy is not None and _waits(case, policy, update),
        logs=policy.logs if policy else None,
        before=before,
    )


def _update(case: Case) -> Update | None:
    with suppress(UnjudgedError, WorkConflictError, LedgerError):
        return case.update
    return None


def _verdicts(case: Case, before: RefusedBefore | None, *, done: bool) -> Iterator[Verdict]:
    refused = False
    for gate in GATES:
        found = _verdict(gate, case, before, done=done)
        if found.outcome == "REFUSES":
            yield replace(found, outcome="would refuse") if refused else found
            refused = True
        else:
            yield found


def _verdict(gate: Gate, case: Case, before: RefusedBefore | None, *, done: bool) -> Verdict:
    if done and gate.part in (NEW_WORK, BASE, BUDGET):
        return _said(gate, "not asked", "the work is done: its result is sent again for nothing")
    if not done and gate.part == RELEASE:
        return _said(gate, "not asked", "there is no result yet")
    try:
        found = gate.check(case)
    except UnjudgedError as error:
        if before is not None and before.finding.startswith(f"{gate.name} ("):
            then = _said(gate, "REFUSES", f"when it came: {safe(before.finding)}")
            return replace(then, code=before.code)
        return _said(gate, "not known", str(error))
    if found is None:
        return _said(gate, "passes", gate.sentence)
    refuses = _said(gate, "REFUSES", found.sentence)
    return replace(refuses, clause=found.key or gate.clause, code=found.code or gate.code)


def _said(gate: Gate, outcome: Outcome, finding: str) -> Verdict:
    return Verdict(
        part=gate.part,
        gate=gate.name,
        clause=gate.clause,
        code=gate.code,
        outcome=outcome,
        finding=finding,
    )


def _waits(case: Case, policy: Policy, update: Update | None) -> bool:
    """Whether the result waits for a person, now or once there is one."""
    order = case.order
    before = Approvals(case.ground.home).approved_before(order.terms_digest, order.kind)
    decided = update is not None and case.decision is not None
    return not decided and needs_approval(policy, case.sending, approved_before=before)
