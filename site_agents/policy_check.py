"""Whether a policy fits the rest of its site: its data sources and the installed tasks."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import Scalar
from fedfactory.privacy.delta import delta_fault
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import Task
from site_agents.policy import Allowed, OneOf, Policy, TaskRule

MAX_QUOTED: Final = 2000
OPEN_LINEAGE: Final = (
    "if it is a population of its own, site-agent ledger open-lineage NAME --reason TEXT; if not,"
    " name the lineage that it is of"
)


def misfits(
    policy: Policy, sources: Collection[str], lineages: Mapping[str, float], now: float
) -> list[str]:
    """Return what does not fit, one sentence each.

    `sources` are the names in agent.yaml, `lineages` those that the ledger has open: their deltas,
    `now` is Unix seconds.

    Such a policy holds and never allows too much; orders are refused where it does not fit.
    """
    found = [
        f"data.{name}: agent.yaml has no data source of that name"
        for name in policy.data
        if name not in sources
    ]
    found += [
        f"data.{name}.lineage: the ledger has no budget for '{rule.lineage}'; {OPEN_LINEAGE}"
        for name, rule in policy.data.items()
        if rule.lineage not in lineages
    ]
    found += delta_misfits(policy, lineages)
    found += task_misfits(policy)
    for role in ("coordinators", "operators"):
        if not getattr(policy, role):
            found.append(f"{role}: no key is pinned, so every order is refused")
    return found + pin_misfits(policy, now)


def pin_misfits(policy: Policy, now: float) -> list[str]:
    """Return each operator's pin that has ended at Unix time `now`: such plans are refused."""
    return [
        f"operators.{name}: the pin ended on {pin.until}, so every plan signed by it is refused;"
        f" compare the fingerprint, then site-agent policy confirm-operator {name} {pin.key}, or"
        " remove the entry"
        for name, pin in policy.operators.items()
        if pin.days_left(now) < 0
    ]


def delta_misfits(policy: Policy, lineages: Mapping[str, float]) -> list[str]:
    """Return each delta, the policy's and the ledger's, that is too large for a data set."""
    found = []
    for name, rule in policy.data.items():
        size = f"data.{name}.public_size"
        if fault := delta_fault(policy.delta, rule.public_size, size=size):
            found.append(f"privacy.delta: {fault}")
        opened = lineages.get(rule.lineage, 0.0)
        if fault := delta_fault(opened, rule.public_size, size=size):
            found.append(
                f"data.{name}.lineage: the delta of '{rule.lineage}', which never changes, {fault};"
                " declare a public_size below 1 / delta"
            )
    return found


def task_misfits(policy: Policy) -> list[str]:
    """Return what of the policy does not fit the installed tasks, one sentence each."""
    return [
        found
        for name, rule in policy.tasks.items()
        for found in _of_task(name, rule, private=policy.dp_required)
    ]


def open_data_parameters(
    rule: TaskRule, task: Task, asked: Mapping[str, Scalar] = MappingProxyType({})
) -> str | None:
    """Return why work under differential privacy is refused, as far as it is the policy's data.

    None: the policy fixes each of the task's data parameters to one value. A choice among several
    would be the coordinator's, and which records fit each of them is a question that no budget
    pays for. `asked` are an order's own values, to be quoted.
    """
    names = [name for name in task.data_parameters if not is_fixed(rule.parameters.get(name))]
    if not names:
        return None
    rows = ", ".join(f"{name}: [{_example(asked, name)}]" for name in names)
    return (
        f"tasks.{task.name}.parameters leaves {', '.join(names)} open: under differential privacy"
        f" the site fixes what is read of its data, each to one value: parameters: {{{rows}}}, as"
        f" 'site-agent data check' accepts it"
    )


def is_fixed(allowed: Allowed | None) -> bool:
    """Whether a rule of the policy leaves exactly one value."""
    if isinstance(allowed, OneOf):
        return len(allowed.values) == 1
    return allowed is not None and allowed.low == allowed.high


def _example(asked: Mapping[str, Scalar], name: str) -> str:
    """Quote what an order asks for, safely: it is of a coordinator's choosing."""
    value = asked.get(name)
    if value is None:
        return "VALUE"
    return json.dumps(value) if isinstance(value, int) else json.dumps(str(value)[:MAX_QUOTED])


def _of_task(name: str, rule: TaskRule, *, private: bool) -> list[str]:
    try:
        task = load_task(name)
    except FedfactoryError as error:
        return [f"tasks.{name}: {error}"]
    schema = task.parameters
    free = open_data_parameters(rule, task) if private else None
    found = [] if free is None else [free]
    for parameter, allowed in rule.parameters.items():
        key = f"tasks.{name}.parameters.{parameter}"
        if parameter not in schema:
            found.append(f"{key}: the task has no such parameter; it has {', '.join(schema)}")
        elif isinstance(allowed, OneOf):
            found += [
                f"{key}: the task takes no {value!a}, but {schema[parameter].expected()}"
                for value in allowed.values
                if not schema[parameter].accepts(value)
            ]
    return found
