"""The clauses of GATES on plan and policy, asked without a site: pure, as the agent asks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedfactory.contracts.plans import OrderEnvelope
from site_agents.gate_checks import Clause
from site_agents.gates import GATES, Gate
from site_agents.policy import Facts, Finding, Policy

CLAUSES = tuple(gate for gate in GATES if isinstance(gate.check, Clause))


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`code` is None when the sending is allowed; `clause` is the exact key that decided."""

    code: str | None
    clause: str
    finding: str


def examine(
    policy: Policy, sending: OrderEnvelope, facts: Facts
) -> Iterator[tuple[Gate, Finding | None]]:
    for gate in CLAUSES:
        assert isinstance(gate.check, Clause)
        yield gate, gate.check.judge(policy, sending, facts)


def judge(policy: Policy, sending: OrderEnvelope, facts: Facts) -> Verdict:
    for gate, found in examine(policy, sending, facts):
        if found is not None:
            return Verdict(code=gate.code, clause=found.key or gate.clause, finding=found.sentence)
    return Verdict(code=None, clause="all", finding="every clause holds")
