"""May this site do a piece of work now? Who asks, its policy, its administrator, its data.

Orders and questions about a plan are asked the same, here, so that they hear the same. Nothing is
spent or changed, and no record is touched before the policy has agreed.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fedfactory.contracts.errors import IdentityError, IntegrityError, ProtocolError, UsageError
from fedfactory.contracts.orders import Order, Scalar, WorkKey
from fedfactory.contracts.plans import Sending, Signature
from fedfactory.identity.signing import verify
from fedfactory.tasks.table import check_task
from fedfactory.tasks.task import Task
from fedfactory.wire.arrays import largest_values
from site_agents import control
from site_agents.config import POLICY_FILE
from site_agents.executors.executor import (
    JobTimeoutError,
    NeverBegunError,
    NoDataError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.failures import too_many_failures
from site_agents.jobs.settings import SourceFacts
from site_agents.policy import DataRule, Facts, Policy, PolicyFileError, judge
from site_agents.policy_check import open_data_parameters
from site_agents.policy_file import load_policy, local_minute
from site_agents.refused import RefusedError
from site_agents.revocations import revoked_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Work that the policy allows, and what it is allowed on."""

    sending: Sending
    key: WorkKey
    policy: Policy
    source: str | None
    rule: DataRule | None
    facts: Facts

    @property
    def order(self) -> Order:
        """What is to be done."""
        return self.sending.order

    @property
    def private(self) -> bool:
        """Whether it is done under differential privacy."""
        return self.order.privacy is not None


class AsksWorker(Protocol):
    """What is asked of a worker before work begins. Both raise what an Executor's methods raise."""

    def describe(
        self, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> SourceFacts | None:
        """Say what a source holds for a task; None if that cannot be known now."""

    def check_form(self, source: str, task: str, task_parameters: Mapping[str, Scalar]) -> None:
        """Check that a source has the form that a task wants, as far as that is known now."""


def signed_by(value: object, signature: Signature) -> str:
    """Return the fingerprint of the key that signed a value.

    Raises:
        RefusedError: the signature is not over it.
    """
    try:
        return verify(value, signature)
    except IdentityError as error:
        raise RefusedError("not_authorised", str(error)) from error


def revoked_operators(home: Path) -> frozenset[str]:
    """Return the fingerprints of the operators' keys that were revoked.

    Raises:
        RefusedError: that is not known.
    """
    try:
        return revoked_keys(home)
    except IntegrityError as error:
        raise RefusedError("not_authorised", str(error)) from error


class Permission:
    """One site's say. `sources` are the names under `data` in agent.yaml."""

    def __init__(self, *, site: str, home: Path, sources: Collection[str]) -> None:
        self._site = site
        self._home = home
        self._sources = sources

    def allow(
        self,
        sending: Sending,
        coordinator_key: str,
        *,
        gpu_hours_of_run: float,
        finished: bool,
    ) -> Asked:
        """Check who asks, and hold the work against the site's own policy as it is now.

        `coordinator_key` is the fingerprint of the key that vouches for the sending.

        Raises:
            RefusedError: it is not allowed.
        """
        operator_key = signed_by(sending.plan.terms, sending.plan.signature)
        revoked = revoked_operators(self._home)
        try:
            policy = load_policy(self._home / POLICY_FILE)
        except PolicyFileError as error:
            raise RefusedError("no_policy", str(error)) from error
        source, now = policy.source_for(sending.order.task), time.time()
        asked = Asked(
            sending=sending,
            key=sending.order.key(),
            policy=policy,
            source=source,
            rule=policy.data[source] if source else None,
            facts=Facts(
                now=now,
                local_minute=local_minute(policy, now),
                coordinator_key=coordinator_key,
                operator_key=operator_key,
                revoked=revoked,
                site=self._site,
                train_examples=None,
                evaluate_examples=None,
                gpu_hours_of_run=gpu_hours_of_run,
                finished=finished,
            ),
        )
        _judge(asked, asked.facts)
        return asked

    def begin(self, asked: Asked, worker: AsksWorker) -> None:
        """Check what stands against new work, though not against sending what is done.

        Raises:
            RefusedError: it may not be begun now.
        """
        word = control.state(self._home)
        if word.name != "running":
            code = "killed" if word.name == "killed" else "paused"
            raise RefusedError(code, f"{word.name} by {word.by}: {word.reason}")
        order = asked.order
        try:
            task = check_task(order.task, order.task_parameters)
        except UsageError as error:
            raise RefusedError("bad_parameters", ascii(str(error))) from error
        reads_data = task.data_schema(order.task_parameters) is not None
        if reads_data and asked.source not in self._sources:
            raise RefusedError("no_data", f"agent.yaml has no data source {asked.source!r}")
        if asked.private:
            self._begin_privately(asked, task)
        if reads_data:
            _look_at_data(asked, worker)

    def _begin_privately(self, asked: Asked, task: Task) -> None:
        """Check that work could not fail, seen by all, because of a record that somebody chose."""
        assert asked.rule is not None
        if obstacle := task.private_obstacle(asked.order.task_parameters):
            raise RefusedError("bad_parameters", obstacle)
        rule = asked.policy.tasks[task.name]
        if left_open := open_data_parameters(rule, task, asked.order.task_parameters):
            raise RefusedError("policy_parameters", left_open)
        if too_many := too_many_failures(self._home, asked.rule.lineage, asked.order.coordinator):
            raise RefusedError("paused", too_many)


def judge_base(asked: Asked, path: Path) -> None:
    """Hold the values of the fetched base model against the policy; reads the file once.

    Raises:
        RefusedError: a value is not finite or too large, or the file is no whole model.
    """
    try:
        base = largest_values(path)
    except (IntegrityError, ProtocolError) as error:
        raise RefusedError("policy_base", str(error)) from error
    _judge(asked, replace(asked.facts, base=base))


def _look_at_data(asked: Asked, worker: AsksWorker) -> None:
    """Check that the data can be worked on, as far as that can be known.

    Under differential privacy no record is read, not even to count it, before it is paid for: only
    the form of the data is looked at, which no record can change.
    """
    assert asked.source is not None
    about = (asked.source, asked.order.task, asked.order.task_parameters)
    found = None
    try:
        if asked.private:
            worker.check_form(*about)
        else:
            found = worker.describe(*about)
    except NoDataError as error:
        raise RefusedError("no_data", str(error)) from error
    except (WorkerLostError, JobTimeoutError) as error:
        raise RefusedError("worker_lost", str(error)) from error
    except (NeverBegunError, WorkStoppedError) as error:
        raise RefusedError("paused", str(error)) from error
    if found is not None:
        _judge(
            asked,
            replace(asked.facts, train_examples=found.train, evaluate_examples=found.evaluate),
        )


def _judge(asked: Asked, facts: Facts) -> None:
    verdict = judge(asked.policy, asked.sending, facts)
    if verdict.code is not None:
        raise RefusedError(verdict.code, f"{verdict.clause}: {verdict.finding}")
