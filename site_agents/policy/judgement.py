"""The site's judgement on a sending: pure, and never loosened by what a coordinator says.

Clauses are asked in the order of CLAUSES; the first that fails decides. Each finds for itself, so a
restriction that is added can only add a finding. What the budget has left is the ledger's matter,
values of parameters are judged by the task's own schema as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedfactory.contracts.plans import Sending
from site_agents.policy.clauses import CLAUSES, Clause
from site_agents.policy.facts import Facts, Finding
from site_agents.policy.values import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`code` is None when the sending is allowed, else a key of REFUSALS.

    `clause` is the dotted key of policy.yaml (or of the plan) that decided, "all" when allowed;
    `finding` says what was found, and stays at the site.
    """

    code: str | None
    clause: str
    finding: str


def judge(policy: Policy, sending: Sending, facts: Facts) -> Verdict:
    """Judge a sending whose signatures were verified (facts hold the keys they verified with)."""
    for clause, finding in examine(policy, sending, facts):
        if finding is not None:
            return Verdict(
                code=clause.code, clause=finding.key or clause.key, finding=finding.sentence
            )
    return Verdict(code=None, clause="all", finding="every clause holds")


def examine(
    policy: Policy, sending: Sending, facts: Facts
) -> Iterator[tuple[Clause, Finding | None]]:
    """Yield every clause, in order, with what it finds against a sending."""
    for clause in CLAUSES:
        yield clause, clause.check(policy, sending, facts)


def needs_approval(policy: Policy, sending: Sending, *, approved_before: bool) -> bool:
    """Whether a person decides before the result of this work leaves.

    `approved_before`: a person already approved a result of this plan and kind. `first_round` asks
    for the first result that would leave, whichever round it is of: a coordinator that skips round
    1 does not get past it. `final_only` asks in the plan's last round; earlier updates have left.
    """
    match policy.egress:
        case "automatic":
            return False
        case "first_round":
            return not approved_before
        case "final_only":
            return sending.order.round >= sending.plan.terms.rounds
        case "every_round":
            return True
