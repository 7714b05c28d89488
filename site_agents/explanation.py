"""What would happen to an order now, step by step, as the agent would ask; nothing is changed.

It knows all that the agent knows but one thing: how many records the site's data holds, which only
a worker counts. Asked later than the agent was, it judges by the clock and the books as they are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fedfactory.contracts.codec import digest_of, from_json
from fedfactory.contracts.errors import FedfactoryError, IdentityError, ProtocolError, UsageError
from fedfactory.contracts.plans import Delivery, Sending, Signature
from fedfactory.contracts.updates import Update
from fedfactory.identity.signing import verify
from fedfactory.tasks.table import check_task
from site_agents import control
from site_agents.admission import Shortfall, next_entry, run_of, stake_of
from site_agents.approvals import Approvals, work_id
from site_agents.config import AGENT_FILE, POLICY_FILE, AgentConfig
from site_agents.failures import too_many_failures
from site_agents.ledger import Ledger, WorkConflictError
from site_agents.policy import Facts, LogsMode, Policy, examine, needs_approval
from site_agents.policy_check import open_data_parameters
from site_agents.policy_file import load_policy, local_minute
from site_agents.receipts import missing_receipt
from site_agents.revocations import revoked_keys

MOST_TOLD: Final = 400
Outcome = Literal["holds", "against", "not known here"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that is asked of an order. `code` is the refusal's if it is found against."""

    key: str
    code: str
    outcome: Outcome
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Every step in the order in which the agent asks; the first that is against decides.

    `logs` is what the policy lets an operator read of the run's record afterwards.
    """

    sending: Sending
    steps: tuple[Step, ...]
    waits_for_person: bool
    logs: LogsMode

    @property
    def decides(self) -> Step | None:
        """The step that refuses the order; None if it is allowed."""
        return next((step for step in self.steps if step.outcome == "against"), None)


def read_delivery(path: Path) -> Delivery | Step:
    """Return the delivery in a file, or the step that refuses it for its form.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return from_json(Delivery, raw)
    except (ProtocolError, UsageError) as error:
        found = _safe(f"{error} {error.diagnostic or ''}".strip())
        return Step(key="order.form", code="bad_order", outcome="against", finding=found)


def explain(config: AgentConfig, delivery: Delivery) -> Explanation:
    """Ask of a delivery what the agent of this home would ask.

    Raises:
        PolicyFileError: the policy file does not hold.
        LedgerError: the ledger does not hold.
        IntegrityError: what was revoked cannot be read.
    """
    policy = load_policy(config.home / POLICY_FILE)
    sending = delivery.sending
    ledger = Ledger.open(config.ledger)
    try:
        begun, update = _work(ledger, sending)
        signatures, facts = _who_asks(config, ledger, policy, delivery, finished=bool(update))
        clauses = list(_clauses(policy, sending, facts))
        leaves, waits = _egress(config.home, policy, sending, update)
        steps = (
            *signatures,
            *(step for step in clauses if step.outcome != "not known here"),
            _books(ledger, sending),
            begun,
            *(() if update else (_receipt(ledger, sending),)),
            *(() if update else _to_begin(config, ledger, policy, sending, clauses)),
            *leaves,
        )
    finally:
        ledger.close()
    return Explanation(sending=sending, steps=steps, waits_for_person=waits, logs=policy.logs)


def _who_asks(
    config: AgentConfig, ledger: Ledger, policy: Policy, delivery: Delivery, *, finished: bool
) -> tuple[tuple[Step, Step], Facts]:
    """Return the steps of both signatures, and the facts by which the clauses judge."""
    sending, now = delivery.sending, time.time()
    by_coordinator, coordinator_key = _signature("sending.signature", sending, delivery.signature)
    by_operator, operator_key = _signature(
        "plan.signature", sending.plan.terms, sending.plan.signature
    )
    facts = Facts(
        now=now,
        local_minute=local_minute(policy, now),
        coordinator_key=coordinator_key,
        operator_key=operator_key,
        revoked=revoked_keys(config.home),
        site=config.site,
        train_examples=None,
        evaluate_examples=None,
        gpu_hours_of_run=ledger.budget.seconds.get(run_of(sending.order), 0.0) / 3600,
        finished=finished,
    )
    return (by_coordinator, by_operator), facts


def _to_begin(
    config: AgentConfig,
    ledger: Ledger,
    policy: Policy,
    sending: Sending,
    clauses: Sequence[Step],
) -> Iterator[Step]:
    """Yield what is asked of work that is not yet done."""
    yield _word(config.home)
    yield _parameters(sending)
    yield _source(config, policy, sending)
    yield _data_parameters(policy, sending)
    yield _failures(config.home, policy, sending)
    yield from (step for step in clauses if step.outcome == "not known here")
    yield _budget(ledger, policy, sending, time.time())


def _signature(key: str, value: object, signature: Signature) -> tuple[Step, str]:
    try:
        signer = verify(value, signature)
    except IdentityError as error:
        return Step(key=key, code="not_authorised", outcome="against", finding=str(error)), ""
    return Step(key=key, code="not_authorised", outcome="holds", finding=f"by {signer}"), signer


def _clauses(policy: Policy, sending: Sending, facts: Facts) -> Iterator[Step]:
    for clause, finding in examine(policy, sending, facts):
        if finding is not None:
            key = finding.key or clause.key
            yield Step(key=key, code=clause.code, outcome="against", finding=finding.sentence)
        elif clause.needs == "examples" and sending.order.privacy is None and policy.without_dp:
            finding_text = "a worker counts the records when the order comes"
            yield Step(
                key=clause.key, code=clause.code, outcome="not known here", finding=finding_text
            )
        elif clause.needs == "base":
            finding_text = "the base model's values are read once it is fetched"
            yield Step(
                key=clause.key, code=clause.code, outcome="not known here", finding=finding_text
            )
        else:
            yield Step(key=clause.key, code=clause.code, outcome="holds", finding="")


def _books(ledger: Ledger, sending: Sending) -> Step:
    found = ledger.contradiction(sending.receipt) if sending.receipt else None
    return _step("ledger", "books_broken", found)


def _receipt(ledger: Ledger, sending: Sending) -> Step:
    name = sending.order.coordinator
    is_due = sending.receipt is None and name in ledger.budget.receipts
    return _step("sending.receipt", "no_receipt", missing_receipt(name) if is_due else None)


def _work(ledger: Ledger, sending: Sending) -> tuple[Step, Update | None]:
    """Return the step, and the update if this work was done before."""
    try:
        update = ledger.finished(sending.order.key())
    except WorkConflictError:
        return _step("work", "conflict", "another order for this round was begun"), None
    finding = "done before: it is sent again and costs nothing" if update else ""
    return Step(key="work", code="conflict", outcome="holds", finding=finding), update


def _egress(
    home: Path, policy: Policy, sending: Sending, update: Update | None
) -> tuple[list[Step], bool]:
    """Return what keeps a result here, and whether it waits for a person."""
    order, approvals = sending.order, Approvals(home)
    before = approvals.approved_before(order.plan_digest, order.kind)
    asked = needs_approval(policy, sending, approved_before=before)
    if update is None:
        return [], asked
    decision = approvals.decision(work_id(order.key()), digest_of(update))
    denied = decision is not None and not decision.approved
    found = f"denied by {decision.by}: {decision.reason}" if decision and denied else None
    word = control.state(home)
    killed = f"killed by {word.by}: {word.reason}" if word.name == "killed" else None
    steps = [_step("control", "killed", killed), _step("egress", "policy_egress", found)]
    return steps, asked and decision is None


def _word(home: Path) -> Step:
    word = control.state(home)
    code = "killed" if word.name == "killed" else "paused"
    running = word.name == "running"
    return _step("control", code, None if running else f"{word.name} by {word.by}: {word.reason}")


def _parameters(sending: Sending) -> Step:
    order = sending.order
    try:
        task = check_task(order.task, order.task_parameters)
        found = task.private_obstacle(order.task_parameters) if order.privacy else None
    except FedfactoryError as error:
        found = _safe(str(error))
    return _step("task schema", "bad_parameters", found)


def _source(config: AgentConfig, policy: Policy, sending: Sending) -> Step:
    order, found = sending.order, None
    source = policy.source_for(order.task)
    with suppress(FedfactoryError):  # that task or parameters do not fit is another step's
        task = check_task(order.task, order.task_parameters)
        if task.data_schema(order.task_parameters) and source not in config.data:
            found = f"{AGENT_FILE} has no data source '{source}'"
    return _step("data", "no_data", found)


def _data_parameters(policy: Policy, sending: Sending) -> Step:
    order = sending.order
    rule = policy.tasks.get(order.task)
    found = None
    if rule is not None and order.privacy is not None:
        with suppress(FedfactoryError):  # that task or parameters do not fit is another step's
            task = check_task(order.task, order.task_parameters)
            found = open_data_parameters(rule, task, order.task_parameters)
    return _step(f"tasks.{_safe(order.task)}.parameters", "policy_parameters", found)


def _failures(home: Path, policy: Policy, sending: Sending) -> Step:
    source = policy.source_for(sending.order.task)
    found = None
    if source is not None and sending.order.privacy is not None:
        found = too_many_failures(home, policy.data[source].lineage, sending.order.coordinator)
    return _step("failures", "paused", found)


def _budget(ledger: Ledger, policy: Policy, sending: Sending, now: float) -> Step:
    """Hold the order against the budget, without holding or reserving anything of it."""
    order = sending.order
    source = policy.source_for(order.task)
    if order.privacy is None or source is None:
        return _step("privacy budget", "budget_exhausted", None)
    for lapse in ledger.budget.lapsing(now, policy.holds.silent_days):
        ledger.budget.apply(lapse)  # as the agent does first; nothing is written
    cost = next_entry(
        ledger.budget,
        ledger.accountant,
        order,
        sending.plan.terms,
        stake=stake_of(policy, policy.data[source]),
        now=now,
    )
    short = cost.finding if isinstance(cost, Shortfall) else None
    return _step("privacy budget", "budget_exhausted", short)


def _safe(error: str) -> str:
    """Return an error that may quote what a coordinator wrote, for an administrator's screen."""
    return ascii(error)[1:-1][:MOST_TOLD]


def _step(key: str, code: str, found: str | None) -> Step:
    if found is None:
        return Step(key=key, code=code, outcome="holds", finding="")
    return Step(key=key, code=code, outcome="against", finding=found)
