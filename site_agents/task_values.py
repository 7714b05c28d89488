"""Values of a task's parameters at a site: those that conf/ has, those that the policy fixes."""

from __future__ import annotations

from collections.abc import Mapping

from fedfactory.choices import choices, values_of
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.task import Task
from site_agents.policy import Allowed, OneOf, TaskRule


def written_values(task: Task) -> Mapping[str, Scalar]:
    """Return the values of a task's parameters as conf/task has them; none for an outside task."""
    values = values_of("task", task.name) if task.name in choices("task") else {}
    return {name: value for name, value in values.items() if name in task.parameters}


def fixed_data(task: Task, source: str) -> TaskRule:
    """Return a rule that fixes the task's data parameters to the values of conf/."""
    values = written_values(task)
    names = [name for name in task.data_parameters if name in values]
    return TaskRule(source=source, parameters={name: OneOf((values[name],)) for name in names})


def first_values(rule: TaskRule) -> Mapping[str, Scalar]:
    """Return, for each parameter that a rule narrows, the first value it allows."""
    return {name: _first(allowed) for name, allowed in rule.parameters.items()}


def _first(allowed: Allowed) -> Scalar:
    return allowed.values[0] if isinstance(allowed, OneOf) else allowed.low
