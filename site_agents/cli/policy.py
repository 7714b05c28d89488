"""`site-agent policy`: check the policy, explain an order's fate, confirm an operator's key."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, tell
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.refusals import REFUSALS
from site_agents.cli.approvals import columns
from site_agents.cli.confirming import add_confirm_operator, confirm_operator
from site_agents.cli.home import add_home, find_home
from site_agents.config import POLICY_FILE, AgentConfig, load_agent_config
from site_agents.executors.isolation import isolation_of
from site_agents.explanation import Explanation, Step, explain, read_delivery
from site_agents.ledger import Ledger
from site_agents.policy import LogsMode, Policy
from site_agents.policy.facts import shown
from site_agents.policy_check import misfits
from site_agents.policy_file import load_policy

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
        help="say what would happen to an order now, and which clause decides",
        description="Exit code 0: allowed; 1: refused. The agent keeps refused orders in"
        " HOME/refused.",
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
    misfit = [*misfits(policy, config.data, lineages), *refusal]
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
    if isinstance(delivery, Step):  # it has not even an order's form
        return _tell(asked, delivery, _verdict(delivery), steps=(delivery,), waits_for_person=False)
    told = explain(config, delivery)
    return _tell(
        *(asked, told.decides, _told(told)),
        steps=told.steps,
        waits_for_person=told.waits_for_person,
    )


def _tell(
    asked: Namespace,
    decides: Step | None,
    words: Sequence[str],
    *,
    steps: Sequence[Step],
    waits_for_person: bool,
) -> int:
    document = {
        "allowed": decides is None,
        "refused": decides.code if decides else None,
        "waits_for_person": waits_for_person,
        "steps": [asdict(step) for step in steps],
    }
    tell(asked, document, ids=_verdict(decides) if decides else (), words=words)
    return int(decides is not None)


def _told(told: Explanation) -> list[str]:
    order = told.sending.order
    rows = [("ASKED", "CODE", "VERDICT"), *(_row(step) for step in told.steps)]
    if told.decides is not None:
        verdict = _verdict(told.decides)
    elif told.waits_for_person:
        verdict = ["ALLOWED; its result waits for a person before it leaves (egress)"]
    else:
        verdict = ["ALLOWED; its result leaves by itself (egress)"]
    return [
        f"{order.kind} {shown(order.task)}, round {order.round} of run {shown(order.run_id)}",
        *verdict,
        f"logs: {LOGS[told.logs]}",
        "",
        *columns(rows),
    ]


def _verdict(decides: Step) -> list[str]:
    return [
        f"REFUSED {decides.code}: {REFUSALS[decides.code]}",
        f"decided by {decides.key}: {decides.finding}",
    ]


def _row(step: Step) -> tuple[str, str, str]:
    verdict = f"{step.outcome}: {step.finding}" if step.finding else step.outcome
    return (step.key, step.code, verdict)
