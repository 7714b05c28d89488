"""Whether this site's devices give a record the same bits in every pass, task by task."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.parameters import Choice, Parameter, WholeNumber
from fedfactory.tasks.rehearsal import Rehearsal
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import Task
from site_agents.config import AgentConfig
from site_agents.doctor.finding import Finding, fail, ok, warn
from site_agents.executors.devices import find_devices
from site_agents.executors.executor import JobTimeoutError, WorkerLostError
from site_agents.executors.warm_worker import WarmWorker
from site_agents.jobs.job import JobTrial
from site_agents.jobs.settings import WorkerSettings
from site_agents.policy import OneOf, Policy, TaskRule

AREA: Final = "dp_sgd"
ROWS: Final = 64
MOST_TRIALS: Final = 8  # of a task: choices of networks multiply
TIMEOUT_S: Final = 300.0


def examine_private_work(config: AgentConfig, policy: Policy | None) -> Iterator[Finding]:
    """Try each task of the policy on each device, as before private work; touches no data."""
    wanted = list(_trials(policy)) if policy else []
    if not wanted:
        return
    try:
        devices = find_devices(config.worker.devices)
    except EnvironmentFailedError:
        return  # the GPUs' examination has said so
    for device in devices:
        settings = WorkerSettings(
            site=config.site, sources={}, threads=config.worker.threads, device=device
        )
        log = config.home / "logs" / "worker.log"
        worker = WarmWorker(settings, network=config.worker.network, log=log)
        try:
            worker.wait_ready()
            yield from (_tried(worker, trial, device) for trial in wanted)
        except (OSError, WorkerLostError, JobTimeoutError) as error:
            yield fail(AREA, f"could not be tried on {device}: {error}", f"read the end of {log}")
        finally:
            worker.close()


def _tried(worker: WarmWorker, trial: JobTrial, device: str) -> Finding:
    answer: Mapping[str, Any] = worker.ask({"rehearse": encode(trial)}, TIMEOUT_S)
    shown = " ".join(
        f"{k}={v}" for k, v in trial.task_parameters.items() if len(str(v)) <= len("classification")
    )
    name = f"{trial.task} {shown}".strip()
    if "failure" in answer:
        return fail(
            AREA,
            f"{name}: no private work on {device}: {answer['finding']}",
            "name another device in worker.devices, or take the task out of the policy",
        )
    if answer["passes"]["rows"] == 1:
        return warn(
            AREA,
            f"{name}: one record at a time on {device}, about 15 times slower: with more rows a"
            " record's gradient follows the others' by rounding",
            "another version of torch, or another device, may not need it",
        )
    return ok(AREA, f"{name}: a record has the same bits in every pass on {device}")


def _trials(policy: Policy) -> Iterator[JobTrial]:
    for name, rule in policy.tasks.items():
        try:
            task = load_task(name)
        except FedfactoryError:
            continue  # the policy's examination has said so
        yield from itertools.islice(_task_trials(task, rule), MOST_TRIALS)


def _task_trials(task: Task, rule: TaskRule) -> Iterator[JobTrial]:
    values = [_values(rule, name, kind) for name, kind in task.parameters.items()]
    for chosen in itertools.product(*values):
        parameters = dict(zip(task.parameters, chosen, strict=True))
        try:
            task.check(parameters)
        except FedfactoryError:
            continue
        if task.private_obstacle(parameters) is None:
            rehearsal = Rehearsal(kind="train", rows=ROWS, grad_sample_mode="hooks")
            yield JobTrial(
                task=task.name, task_parameters=parameters, base=None, rehearsal=rehearsal
            )


def _values(rule: TaskRule, name: str, kind: Parameter) -> tuple[Scalar, ...]:
    """Return what an order may name for a parameter; the least of a range; none for a free text."""
    allowed = rule.parameters.get(name)
    if isinstance(allowed, OneOf):
        return tuple(allowed.values)
    if isinstance(kind, Choice):
        return kind.names
    if isinstance(kind, WholeNumber):
        return (kind.low if allowed is None else max(kind.low, int(allowed.low)),)
    return ()
