"""Every gate that an order passes at this site, in order. The first that refuses decides.

This table is the one sequence: the agent stops at the first gate that refuses (pipeline.py), the
question before a run walks what the signed terms and a look at the data's form can decide
(fitness.py), and `site-agent policy explain` shows all of them (explanation.py). What a gate looks
at is in gate_checks.py and policy/; docs/policy.md shows this table, docs/contributing.md how a key of the policy gets a row.

Refusals by the gates of WHO are counted and not recorded one by one (unauthorised.py), those by all
others are recorded before the answer leaves. The gate of BUDGET comes last before the
reservation: what comes after it is paid for, on disk, before a record is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from site_agents import gate_checks as checks
from site_agents.gate_case import Case
from site_agents.gate_checks import Against, BaseClause, Clause, CountClause, GateCheck
from site_agents.policy import plan_clauses, site_clauses
from site_agents.refused import RefusedError

Part = Literal[
    "who asks",
    "order and signed plan",
    "policy of this site",
    "records of this site",
    "new work",
    "base model",
    "privacy budget",
    "letting the result leave",
]
# Where a gate can first be judged: `terms` are the run's signed terms and the site's own files,
# `order` is an order (a question before a run has none), `form` a worker's look at the data source
# (its form; without differential privacy, its count), `base` the fetched base model, `result` an
# update that is about to leave.
Needs = Literal["terms", "order", "form", "base", "result"]

WHO: Final = "who asks"
PLAN: Final = "order and signed plan"
POLICY: Final = "policy of this site"
RECORDS: Final = "records of this site"
NEW_WORK: Final = "new work"
BASE: Final = "base model"
BUDGET: Final = "privacy budget"
RELEASE: Final = "letting the result leave"
EVERY_ORDER: Final = (WHO, PLAN, POLICY, RECORDS)  # also one whose work was done before


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing that must hold.

    `name` is what people of the site read, `code` a key of REFUSALS, all that leaves the site;
    `other_codes` are those of a gate that asks somebody who may fail in other ways. `clause` is
    what the gate enforces: a dotted key of policy.yaml, a term of the signed plan (`plan.*`),
    something that came with the order (`order.*`, `sending.*`), a file of the site, or a numbered
    rule of docs/privacy.md. `again`: under differential privacy it is asked once more before each
    reservation, since minutes may have passed.
    """

    part: Part
    name: str
    code: str
    check: GateCheck
    clause: str
    needs: Needs = "terms"
    other_codes: tuple[str, ...] = ()
    again: bool = False

    @property
    def sentence(self) -> str:
        """What must hold, in one sentence."""
        check = self.check.judge if isinstance(self.check, Clause) else self.check
        return (check.__doc__ or "").strip().splitlines()[0]

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code that it refuses with, its own first."""
        return (self.code, *self.other_codes)


_P, _S = plan_clauses, site_clauses
_BOOKS: Final = ("books_broken",)
_WORKER: Final = ("worker_lost", "paused")
# fmt: off
GATES: Final[tuple[Gate, ...]] = (
    Gate(WHO, "coordinator's signature", "not_authorised", checks.coordinator_signature, "rule 15"),
    Gate(WHO, "operator's signature", "not_authorised", checks.operator_signature, "rule 15"),
    Gate(WHO, "list of revoked operators", "not_authorised", checks.revocations, "rule 37", again=True),
    Gate(WHO, "policy file", "no_policy", checks.policy_file, "rule 42"),
    Gate(WHO, "known coordinator", "not_authorised", Clause(_P.coordinators), "coordinators"),
    Gate(WHO, "known operator", "not_authorised", Clause(_P.operators), "operators", again=True),

    Gate(PLAN, "safe names", "bad_order", Clause(_P.names), "order.names"),
    Gate(PLAN, "time to answer", "expired", Clause(_P.expires_at), "sending.expires_at", "order", again=True),
    Gate(PLAN, "same plan", "outside_plan", Clause(_P.digest), "plan.digest", "order"),
    Gate(PLAN, "end of the plan", "outside_plan", Clause(_P.not_after), "plan.not_after"),
    Gate(PLAN, "same coordinator", "outside_plan", Clause(_P.coordinator), "plan.coordinator", "order"),
    Gate(PLAN, "same run", "outside_plan", Clause(_P.run_id), "plan.run_id", "order"),
    Gate(PLAN, "this site", "outside_plan", Clause(_P.sites), "plan.sites"),
    Gate(PLAN, "planned round", "outside_plan", Clause(_P.rounds), "plan.rounds", "order"),
    Gate(PLAN, "planned evaluation", "outside_plan", Clause(_P.evaluate), "plan.evaluate", "order"),
    Gate(PLAN, "planned task", "outside_plan", Clause(_P.task), "plan.task", "order"),
    Gate(PLAN, "planned task parameters", "outside_plan", Clause(_P.task_parameters), "plan.task_parameters", "order"),
    Gate(PLAN, "planned training", "outside_plan", Clause(_P.training), "plan.training", "order"),
    Gate(PLAN, "planned privacy", "outside_plan", Clause(_P.privacy), "plan.privacy", "order"),
    Gate(PLAN, "planned model size", "outside_plan", Clause(_P.max_model_bytes), "plan.max_model_bytes"),
    Gate(PLAN, "signed first model", "outside_plan", Clause(_P.initial), "plan.initial", "order"),

    Gate(POLICY, "allowed task", "policy_task", Clause(_S.tasks), "tasks"),
    Gate(POLICY, "allowed task parameters", "policy_parameters", Clause(_S.task_parameters), "tasks.parameters"),
    Gate(POLICY, "allowed training", "policy_parameters", Clause(_S.training), "training"),
    Gate(POLICY, "allowed strategy", "policy_strategy", Clause(_S.strategies), "strategies"),
    Gate(POLICY, "differential privacy", "policy_privacy", Clause(_S.privacy_dp), "privacy.dp"),
    Gate(POLICY, "delta", "policy_privacy", Clause(_S.privacy_delta), "privacy.delta"),
    Gate(POLICY, "epsilon of the run", "policy_privacy", Clause(_S.privacy_epsilon), "privacy.epsilon_per_run"),
    Gate(POLICY, "number of evaluations", "policy_privacy", Clause(_S.privacy_evaluations), "privacy.max_evaluations"),
    Gate(POLICY, "number of rounds", "policy_limits", Clause(_S.limits_rounds), "limits.rounds"),
    Gate(POLICY, "length of the plan", "plan_too_long", Clause(_S.limits_plan_days), "limits.plan_days"),
    Gate(POLICY, "model size", "policy_limits", Clause(_S.limits_model_bytes), "limits.max_model_bytes"),
    Gate(POLICY, "hour of the day", "policy_limits", Clause(_S.limits_hours), "limits.hours"),
    Gate(POLICY, "GPU-hours", "policy_limits", Clause(_S.limits_gpu_hours), "limits.gpu_hours_per_run"),

    Gate(RECORDS, "ledger and audit chain", "books_broken", checks.records, "rule 40"),
    Gate(RECORDS, "one order for a round", "conflict", checks.conflict, "rule 14", "order", _BOOKS),

    Gate(NEW_WORK, "receipt", "no_receipt", checks.receipt, "rule 41"),
    Gate(NEW_WORK, "kill switch", "killed", checks.killed, "control/state.json", again=True),
    Gate(NEW_WORK, "pause", "paused", checks.paused, "control/state.json"),
    Gate(NEW_WORK, "task's own schema", "bad_parameters", checks.task_schema, "order.task_parameters"),
    Gate(NEW_WORK, "data source", "no_data", checks.data_source, "agent.yaml"),
    Gate(NEW_WORK, "private training", "bad_parameters", checks.private_task, "rule 23"),
    Gate(NEW_WORK, "fixed data parameters", "policy_parameters", checks.data_parameters, "rule 26"),
    Gate(NEW_WORK, "failed work", "paused", checks.failures, "rule 28", again=True),
    Gate(NEW_WORK, "form of the data", "no_data", checks.data_form, "rule 27", "form", _WORKER),
    Gate(NEW_WORK, "number of records", "too_few_examples", CountClause(_S.min_examples), "privacy.min_examples", "form"),
    Gate(NEW_WORK, "number of local steps", "policy_privacy", CountClause(_S.min_local_steps), "privacy.min_local_steps", "form"),

    Gate(BASE, "whole base model", "transfer_failed", checks.base_arrives, "order.base", "base"),
    Gate(BASE, "numbers of the base model", "policy_base", BaseClause(_S.limits_base), "limits.max_base_abs", "base"),
    Gate(BASE, "trial without data", "bad_model", checks.rehearsal, "rule 19", "base", ("not_repeatable", *_WORKER)),
    Gate(BUDGET, "privacy budget", "budget_exhausted", checks.budget, "rule 6", other_codes=_BOOKS, again=True),

    Gate(RELEASE, "kill switch, again", "killed", checks.killed_since, "control/state.json", "result"),
    Gate(RELEASE, "operator, again", "not_authorised", checks.revoked_since, "rule 37", "result"),
    Gate(RELEASE, "a person's decision", "policy_egress", checks.not_denied, "egress", "result"),
    Gate(RELEASE, "cleared file", "egress_refused", checks.cleared_file, "rule 30", "result", ("transfer_failed",)),
)
# fmt: on
# What a question before a run is judged by. Under differential privacy none of it reads a record.
BEFORE_A_RUN: Final = tuple(gate for gate in GATES if gate.needs in ("terms", "form"))
BEFORE_EACH_RESERVATION: Final = tuple(gate for gate in GATES if gate.again)


def parts(*names: Part) -> tuple[Gate, ...]:
    """Return the gates of some parts of the table."""
    return tuple(gate for gate in GATES if gate.part in names)


def walk(gates: Iterable[Gate], case: Case) -> Iterator[tuple[Gate, Against | None]]:
    """Yield each gate with what it finds against a case, one by one."""
    for gate in gates:
        yield gate, gate.check(case)


def pass_through(gates: Iterable[Gate], case: Case) -> None:
    """Stop a case at the first gate that refuses.

    Raises:
        RefusedError: which gate, with its code and finding.
    """
    for gate, found in walk(gates, case):
        if found is not None:
            raise refusal(gate, found)


def refusal(gate: Gate, found: Against) -> RefusedError:
    """Return a gate's refusal."""
    code = found.code or gate.code
    assert code in gate.codes
    return RefusedError(code, f"{gate.name} ({found.key or gate.clause}): {found.sentence}")
