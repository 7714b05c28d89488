"""The tasks there are. A new one is one file and one line here, or an entry point elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.orders import Scalar
from fedfactory.contracts.plugins import PluginTable
from fedfactory.tasks.task import Task

TASKS: Final = PluginTable(
    kind="task",
    group="fedfactory.tasks",
    own={
        "breast_cancer": "fedfactory.tasks.breast_cancer:BreastCancer",
        "digits": "fedfactory.tasks.digits:Digits",
        "echo": "fedfactory.tasks.echo:Echo",
        "tabular": "fedfactory.tasks.tabular:Tabular",
        "timeseries": "fedfactory.tasks.timeseries:TimeSeries",
    },
)


def load_task(name: str) -> Task:
    """Return the task of that name. No task's module imports torch before work begins.

    Raises:
        UnknownNameError: no task of that name.
        EnvironmentFailedError: an installed plug-in is broken, or claims a name twice.
    """
    task = TASKS.load(name)()
    if not isinstance(task, Task):
        raise EnvironmentFailedError(
            f"task '{name}' is a {type(task).__name__}, not a fedfactory.tasks.task.Task;"
            f" known: {', '.join(TASKS.names())}"
        )
    if unknown := sorted(set(task.data_parameters) - set(task.parameters)):
        raise EnvironmentFailedError(
            f"task '{name}': its data_parameters name {', '.join(unknown)}, which it does not have;"
            f" it has {', '.join(task.parameters)}"
        )
    return task


def check_task(name: str, parameters: Mapping[str, Scalar]) -> Task:
    """Return the task if its schema takes these parameters; raise what it raises otherwise."""
    task = load_task(name)
    task.check(parameters)
    return task
