"""Whether a policy fits the rest of its site: its data sources and the installed tasks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import Task
from site_agents.policy import OneOf, Policy, TaskRule

OPEN_LINEAGE: Final = (
    "if it is a population of its own, site-agent ledger open-lineage NAME --reason TEXT; if not,"
    " name the lineage that it is of"
)


def misfits(policy: Policy, sources: Collection[str], lineages: Collection[str]) -> list[str]:
    """Return what does not fit, one sentence each.

    `sources` are the names in agent.yaml, `lineages` those that the ledger has open.

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
    found += [
        f"privacy.delta: {policy.delta:g} is not below 1 / data.{name}.public_size, and then says"
        " nothing of a single record"
        for name, rule in policy.data.items()
        if policy.delta * rule.public_size >= 1
    ]
    found += task_misfits(policy)
    for role in ("coordinators", "operators"):
        if not getattr(policy, role):
            found.append(f"{role}: no key is pinned, so every order is refused")
    return found


def task_misfits(policy: Policy) -> list[str]:
    """Return what of the policy does not fit the installed tasks, one sentence each."""
    return [
        found
        for name, rule in policy.tasks.items()
        for found in _of_task(name, rule, private=policy.dp_required)
    ]


def open_declarations(rule: TaskRule, task: Task) -> str | None:
    """Return why an order under differential privacy may not declare what it reads; None if it may.

    A record that does not fit makes the work fail, and that is seen: whoever chose the columns,
    ranges and categories would ask the records one question after another, and pay for none.
    """
    free = [name for name in task.declarations if not isinstance(rule.parameters.get(name), OneOf)]
    if not free:
        return None
    return (
        f"tasks.{task.name}.parameters leaves {', '.join(free)} open: under differential privacy"
        " the site says what is read; name it in policy.yaml, as 'site-agent data check' accepts it"
    )


def _of_task(name: str, rule: TaskRule, *, private: bool) -> list[str]:
    try:
        task = load_task(name)
    except FedfactoryError as error:
        return [f"tasks.{name}: {error}"]
    schema = task.parameters
    free = open_declarations(rule, task) if private else None
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
