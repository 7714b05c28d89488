"""`site-agent policy`: check the policy, explain an order's fate, confirm an operator's key."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, tell
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.refusals import REFUSALS
from site_agents.cli.confirming import add_confirm_operator, confirm_operator
from site_agents.cli.home import add_home, find_home
from site_agents.config import POLICY_FILE, AgentConfig, load_agent_config
from site_agents.executors.isolation import isolation_of
from site_agents.explanation import Explanation, explain, read_delivery
from site_agents.gate_checks import safe
from site_agents.ledger import Ledger
from site_agents.policy import LogsMode, Policy
from site_agents.policy.facts import shown
from site_agents.policy_check import misfits
from site_agents.policy_file import load_policy
from site_agents.refused_before import RefusedBefore, refused_before

LOGS: Final[Mapping[LogsMode, str]] = {
    "none": "an operator may read nothing of this site's record of a run",
    "outcomes": "an operator may read when work began and how it ended, by codes",
}


def main(words: Sequence[str]) -> int:
    """Check or explain; return 0 if the policy fits, or the order is allowed, else 1."""
    parser = Arguments(
        prog="site-agent policy",
        description="What this site allows: its home's policy.yaml; see docs/policy.md.",
    )
    actions = parser.add_subparsers(
        dest="action", required=True, metavar="check | explain | confirm-operator"
    )
    check = actions.add_parser(
        "check", help="read the file, hold it against agent.yaml, tasks, ledger"
    )
    add_home(check)
    one = actions.add_parser(
        "explain",
        help="say what would happen to an order now, and what every gate says of it",
        description="Exit code 0: allowed; 1: refused; 2: the file is no order. The agent"
        " keeps refused orders in HOME/refused; one is judged as of the time when it came.",
    )
    add_home(one)
    one.add_argument("order", type=Path, metavar="ORDER.json", help="a delivery, as it came")
    confirm = actions.add_parser(
        "confirm-operator",
        help="say that a person compared an operator's fingerprint, and until when it counts",
    )
    add_confirm_operator(confirm)
    for action in (check, one, confirm):
        add_forms(action)
    asked = parser.parse_args(words)
    home = find_home(asked.home)
    act = {"check": _check, "explain": _explain, "confirm-operator": confirm_operator}
    return act[asked.action](home, asked)


def _check(home: Path, asked: Namespace) -> int:
    policy = load_policy(home / POLICY_FILE)
    config = load_agent_config(home, [])
    ledger = Ledger.open(config.ledger)
    lineages = dict(ledger.budget.deltas)
    ledger.close()
    network, refusal = _network(config)
    misfit = [*misfits(policy, config.data, lineages, time.time()), *refusal]
    dp = "required" if policy.dp_required else "optional"
    tell(
        asked,
        {
            "file": str(home / POLICY_FILE),
            "version": policy.version,
            "tasks": list(policy.tasks),
            "differential_privacy": dp,
            "strategies": policy.strategies,
            "max_base_abs": dict(policy.max_base_abs),
            "logs": policy.logs,
            "network": network,
            "misfits": misfit,
        },
        ids=misfit,
        words=misfit
        or [
            f"{home / POLICY_FILE} holds: version {policy.version}",
            f"tasks: {', '.join(policy.tasks) or 'none'}; differential privacy: {dp}",
            f"strategies: {', '.join(policy.strategies or ('any',))}; base models: {_base(policy)}",
            f"logs: {LOGS[policy.logs]}",
            f"workers' network: {network}",
        ],
    )
    return int(bool(misfit))


def _network(config: AgentConfig) -> tuple[str, list[str]]:
    """Return how workers are kept off the network, and why that is not as agent.yaml asks."""
    try:
        return isolation_of(config.worker.network).sentence, []
    except EnvironmentFailedError as error:
        return "not isolated", [str(error)]


def _base(policy: Policy) -> str:
    bounds = (f"|value| up to {b:g} in {p}" for p, b in policy.max_base_abs.items())
    return ", ".join(bounds) or "any finite value"


def _explain(home: Path, asked: Namespace) -> int:
    config = load_agent_config(home, [])
    delivery = read_delivery(asked.order)
    if isinstance(delivery, str):  # it gets no answer at all
        words = _refused("bad_order", "form of an order", delivery)
        document = {
            "allowed": False,
            "refused": "bad_order",
            "waits_for_person": False,
            "gates": [],
        }
        tell(asked, document, ids=words, words=words)
        return 2
    told = explain(config, delivery, refused_before(home, asked.order, delivery))
    decides = told.decides
    document = {
        "allowed": decides is None,
        "refused": decides.code if decides else None,
        "waits_for_person": told.waits_for_person,
        "gates": [asdict(one) for one in told.verdicts],
        "when_it_came": asdict(told.before) if told.before else None,
    }
    verdict = _decision(told)
    tell(asked, document, ids=verdict if decides else (), words=explained_lines(told, verdict))
    return int(decides is not None)


def _decision(told: Explanation) -> list[str]:
    if (found := told.decides) is not None:
        return _refused(found.code, f"{found.gate} ({found.clause})", found.finding)
    if told.waits_for_person:
        return ["ALLOWED; its result waits for a person before it leaves (egress)"]
    return ["ALLOWED; its result leaves by itself (egress)"]


def _refused(code: str, gate: str, finding: str) -> list[str]:
    return [f"REFUSED {code}: {REFUSALS[code]}", f"decided by {gate}: {finding}"]


def _when_it_came(before: RefusedBefore | None) -> list[str]:
    if before is None:
        return []
    day = f"{datetime.fromtimestamp(before.came_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    said = f"{before.code}: {safe(before.finding)}" if before.code else "not in the audit chain"
    return [
        f"when it came ({day}): {said}",
        "what follows is as of that time, by the policy and the records of now",
    ]


def explained_lines(told: Explanation, decision: Sequence[str]) -> list[str]:
    """Return an order's fate for a person: the decision, then every gate, part by part."""
    order = told.delivery.envelope.order
    coordinator, operator = (key or "no valid signature" for key in told.signed_by)
    lines = [
        *_when_it_came(told.before),
        f"{order.kind} {shown(order.task)}, round {order.round} of run {shown(order.run_id)}",
        *decision,
        f"signed by coordinator {coordinator}",
        f"and, its plan, by operator {operator}",
        *([f"logs: {LOGS[told.logs]}"] if told.logs is not None else []),
    ]
    width = max(len(one.gate) for one in told.verdicts)
    for part, verdicts in groupby(told.verdicts, key=lambda one: one.part):
        lines += ["", part.upper()]
        for one in verdicts:
            against = one.outcome in ("REFUSES", "would refuse")
            why = f"{one.code}: {one.finding}" if against else one.finding
            lines.append(f"  {one.outcome:<12}  {one.gate:<{width}}  {why} [{one.clause}]")
    return lines
