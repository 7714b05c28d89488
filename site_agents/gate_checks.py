"""What the gates check beside the policy's own clauses.

The first line of each check's docstring says what must hold. A check returns what it found against
a case, None if nothing, and changes nothing. Findings stay at the site.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from fedfactory.contracts.errors import (
    FedfactoryError,
    IdentityError,
    IntegrityError,
    ProtocolError,
)
from site_agents import control
from site_agents.admission import rehearsal_of_order
from site_agents.books_view import BooksError
from site_agents.config import AGENT_FILE
from site_agents.executors.executor import (
    JobTimeoutError,
    NeverBegunError,
    NoDataError,
    UnfitWorkError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.failures import too_many_failures
from site_agents.gate_case import Case, UnjudgedError
from site_agents.jobs.job import JobTrial
from site_agents.ledger import LedgerError, WorkConflictError
from site_agents.policy import Finding, PolicyFileError
from site_agents.policy.facts import Check
from site_agents.policy.plan_clauses import LEAST_LEFT_S
from site_agents.policy_check import open_data_parameters
from site_agents.receipts import missing_receipt

MOST_SHOWN: Final = 400
RESULT_REMOVED: Final = (
    "the work is done, and its kept result was removed (the newest few of each run are kept): it"
    " cannot be sent again, and the work is not done a second time"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """What was found against a case. `code` is empty where it is the gate's own.

    `key` is the exact key of policy.yaml or of the plan, where the gate's clause covers several.
    """

    sentence: str
    code: str = ""
    key: str = ""


GateCheck = Callable[[Case], Against | None]


@dataclass(frozen=True, slots=True)
class Clause:
    """A pure clause on plan or policy, as a gate's check."""

    judge: Check

    def __call__(self, case: Case) -> Against | None:
        """Ask the clause with the case's policy, order and facts."""
        return _finding(self.judge(case.policy, case.sending, case.facts))


@dataclass(frozen=True, slots=True)
class CountClause(Clause):
    """A clause that the number of records decides, where one is counted."""

    def __call__(self, case: Case) -> Against | None:
        """Ask it; open where a worker would count, and none is here."""
        if not case.private and case.policy.without_dp is not None and case.reads_data:
            _ = case.worker
        return Clause.__call__(self, case)


@dataclass(frozen=True, slots=True)
class BaseClause(Clause):
    """A clause on the values of the base model; the fetched file is read once."""

    def __call__(self, case: Case) -> Against | None:
        """Ask it; a file that is no whole model is against it, too."""
        from fedfactory.wire.arrays import largest_values  # NumPy comes with it: once there is work

        try:
            largest = largest_values(case.base_file)
        except (IntegrityError, ProtocolError) as error:
            return Against(sentence=str(error))
        facts = replace(case.facts, base=largest)
        return _finding(self.judge(case.policy, case.sending, facts))


def _finding(found: Finding | None) -> Against | None:
    return None if found is None else Against(sentence=found.sentence, key=found.key or "")


def _against(sentence: str | None) -> Against | None:
    return None if sentence is None else Against(sentence=sentence)


def safe(error: object) -> str:
    """Return a text that may quote what a coordinator wrote, for logs and screens."""
    return ascii(str(error))[1:-1][:MOST_SHOWN]


# ---- who asks --------------------------------------------------------------------------------


def coordinator_signature(case: Case) -> Against | None:
    """A signature covers exactly what the coordinator sent: order, plan, delivery number, end."""
    found = case.coordinator_signature
    return _against(str(found)) if isinstance(found, IdentityError) else None


def operator_signature(case: Case) -> Against | None:
    """A signature covers exactly the terms of the run."""
    found = case.operator_signature
    return _against(str(found)) if isinstance(found, IdentityError) else None


def revocations(case: Case) -> Against | None:
    """The site's list of revoked operators can be read and is undamaged."""
    return _against(str(case.revoked)) if isinstance(case.revoked, IntegrityError) else None


def policy_file(case: Case) -> Against | None:
    """policy.yaml is valid, and nobody but its owner could have changed it."""
    found = case.policy_or_fault
    return _against(str(found)) if isinstance(found, PolicyFileError) else None


# ---- the site's records ----------------------------------------------------------------------


def records(case: Case) -> Against | None:
    """Ledger and audit chain are whole, and not behind what others have seen of them."""
    if isinstance(case.ground.books, BooksError):
        return Against(sentence=str(case.ground.books))
    try:
        case.books.check(case.sending.receipt)
    except (BooksError, LedgerError) as error:
        return Against(sentence=str(error))
    return None


def conflict(case: Case) -> Against | None:
    """No other order for the same run, round and kind was begun."""
    try:
        _ = case.update
    except WorkConflictError:
        return Against(sentence="another order for this round was begun")
    except LedgerError as error:
        return Against(sentence=str(error), code="books_broken")
    return None


# ---- new work --------------------------------------------------------------------------------


def receipt(case: Case) -> Against | None:
    """A coordinator that sent receipts of this site's records before sends one now."""
    name = case.order.coordinator
    due = case.sending.receipt is None and case.books.expects_receipt(name)
    return _against(missing_receipt(name) if due else None)


def killed(case: Case) -> Against | None:
    """The administrator did not stop all work (site-agent kill)."""
    return _said(case, "killed")


def paused(case: Case) -> Against | None:
    """The administrator did not pause or drain the site."""
    return _said(case, "paused", "draining")


def _said(case: Case, *names: str) -> Against | None:
    word = control.state(case.ground.home)
    return _against(f"{word.name} by {word.by}: {word.reason}" if word.name in names else None)


def task_schema(case: Case) -> Against | None:
    """The task is installed, and its own schema takes the parameters."""
    found = case.task_or_fault
    return _against(safe(found)) if isinstance(found, FedfactoryError) else None


def data_source(case: Case) -> Against | None:
    """agent.yaml names the data source that the policy gives the task."""
    if not case.reads_data or case.source in case.ground.sources:
        return None
    return Against(sentence=f"{AGENT_FILE} has no data source {case.source!r}")


def private_task(case: Case) -> Against | None:
    """Under differential privacy: the model can be trained record by record."""
    if not case.private:
        return None
    return _against(case.task.private_obstacle(case.order.task_parameters))


def data_parameters(case: Case) -> Against | None:
    """Under differential privacy: the policy fixes each parameter that describes data."""
    if not case.private:
        return None
    rule = case.policy.tasks.get(case.order.task)
    if rule is None:
        raise UnjudgedError("the policy does not allow the task")
    return _against(open_data_parameters(rule, case.task, case.order.task_parameters))


def failures(case: Case) -> Against | None:
    """Under differential privacy: not too much work failed since a person last looked."""
    if not case.private:
        return None
    name = case.order.coordinator
    return _against(too_many_failures(case.ground.home, case.data.lineage, name))


def data_form(case: Case) -> Against | None:
    """A worker finds the data, in the right form; under differential privacy it reads no record."""
    if not case.reads_data:
        return None
    worker, source = case.worker, case.source
    assert source is not None
    about = (source, case.order.task, case.order.task_parameters)
    if case.private:
        return _worker_fault(lambda: worker.check_form(*about))
    return _worker_fault(lambda: case.counted(worker.describe(*about)))


def _worker_fault(ask: Callable[[], object]) -> Against | None:
    """Return how a worker failed that was only asked something: nothing is paid for yet."""
    try:
        ask()
    except NoDataError as error:
        return Against(sentence=str(error), code="no_data")
    except UnfitWorkError as error:
        return Against(sentence=str(error), code=error.code)
    except (WorkerLostError, JobTimeoutError) as error:
        return Against(sentence=str(error), code="worker_lost")
    except (NeverBegunError, WorkStoppedError) as error:
        return Against(sentence=str(error), code="paused")
    return None


# ---- the base model, and what it costs -------------------------------------------------------


def base_arrives(case: Case) -> Against | None:
    """The base model arrives whole, with the digest and size that the order names."""
    _ = case.base
    try:
        _ = case.base_file
    except (FedfactoryError, OSError) as error:
        return Against(sentence=f"{error} {getattr(error, 'diagnostic', None) or ''}".strip())
    return None


def rehearsal(case: Case) -> Against | None:
    """Under differential privacy: a trial without data shows that model and device can do it."""
    if not case.private:
        return None
    base, order = case.base, case.order
    trial = JobTrial(
        task=order.task,
        task_parameters=order.task_parameters,
        base=str(case.base_file),
        rehearsal=rehearsal_of_order(order, case.data.public_size),
        begin_by=begin_by(case),
    )
    return _worker_fault(lambda: base.rehearse(trial))


def begin_by(case: Case) -> float | None:
    """Return when private work is too late to begin: it is paid for, and others hold devices."""
    return case.sending.expires_at - LEAST_LEFT_S if case.private else None


def budget(case: Case) -> Against | None:
    """Under differential privacy: what the run and its population have left covers the plan."""
    order, terms = case.order, case.sending.signed.terms
    if not case.private:
        return None
    if order.privacy != terms.privacy:
        raise UnjudgedError("the order's privacy is not its plan's")
    try:
        return _against(case.books.shortfall(order, terms, case.policy, case.data))
    except LedgerError as error:
        return Against(sentence=str(error), code="books_broken")


# ---- a result leaves -------------------------------------------------------------------------


def killed_since(case: Case) -> Against | None:
    """The administrator did not stop all work meanwhile (site-agent kill)."""
    _ = case.result
    return _said(case, "killed")


def revoked_since(case: Case) -> Against | None:
    """The operator was not revoked while it was worked on."""
    _ = case.result
    revoked = case.revoked_now()
    if isinstance(revoked, IntegrityError):
        return Against(sentence=str(revoked))
    is_revoked = case.operator_key in revoked
    return _against("the operator was revoked while it was worked on" if is_revoked else None)


def not_denied(case: Case) -> Against | None:
    """No person of the site denied this result (site-agent deny)."""
    decision = case.decision
    if decision is None or decision.approved:
        return None
    return Against(sentence=f"denied by {decision.by}: {decision.reason}")


def cleared_file(case: Case) -> Against | None:
    """The file is still the one that the egress guard let through."""
    result = case.result
    blob = result.update.payload.blob if result.update.payload else None
    if blob is None or result.cleared:
        return None
    from fedfactory.wire.arrays import file_ref

    try:
        same = file_ref(result.file) == blob
    except FileNotFoundError:
        return Against(sentence=RESULT_REMOVED, code="transfer_failed")
    except OSError as error:
        why = f"{result.file} cannot be read ({error.strerror})"
        return Against(sentence=why, code="transfer_failed")
    return _against(None if same else "the file is no longer the one that was cleared")
