"""Whether the records of each source fit the tasks that the policy gives it to, in counts alone.

Under differential privacy a record that does not fit counts as null, and work goes on without it:
nobody but the site's administrator can be told, and here is where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.table import check_task, load_task
from fedfactory.tasks.task import Task
from site_agents.config import AgentConfig
from site_agents.doctor.finding import Finding, fail, ok
from site_agents.policy import Policy, TaskRule
from site_agents.task_values import first_values, written_values


def examine_records(config: AgentConfig, policy: Policy | None) -> Iterator[Finding]:
    """Read each source as its tasks would; what has no source or no form is told elsewhere too."""
    for name, rule in policy.tasks.items() if policy else ():
        if rule.source in config.data:
            assert policy is not None
            yield from _examine_task(config, policy, name, rule)


def _examine_task(
    config: AgentConfig, policy: Policy, name: str, rule: TaskRule
) -> Iterator[Finding]:
    from site_agents.data.examination import examine
    from site_agents.data.sources import open_source

    about = f"{rule.source} for task '{name}'"
    todo = f"site-agent data check {rule.source} --task {name} tells more"
    data = policy.data[rule.source]
    try:
        task, parameters = _asked(name, rule)
        if task.data_schema(parameters) is None:
            return
        source = open_source(rule.source, config.data[rule.source], data.lineage)
        fit = examine(source, task, parameters, unit=data.unit, private=policy.dp_required)
    except FedfactoryError as error:
        yield fail("records", f"{about}: {error}", todo)
    except Exception as error:  # noqa: BLE001  a site's own reader may raise anything
        yield fail("records", f"{about}: {type(error).__name__}", todo)
    else:
        if fit.problem is None:
            yield ok("records", f"{about}: all of them fit")
        else:
            yield fail("records", f"{about}: {fit.problem}", todo)


def _asked(name: str, rule: TaskRule) -> tuple[Task, Mapping[str, Scalar]]:
    """Return a task with the values that the policy fixes, and conf's where it fixes none."""
    task = load_task(name)
    values = {**written_values(task), **first_values(rule)}
    check_task(name, values)
    return task, values
