"""What an agent asks of an executor: run one job, or say how it was lost."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.orders import WorkKind
from site_agents.jobs.job import Job, JobResult


class WorkerLostError(EnvironmentFailedError):
    """The worker died before its result was there."""


class JobTimeoutError(EnvironmentFailedError):
    """The job took longer than it may."""


class Executor(Protocol):
    """Runs jobs one at a time, in processes that see data and no network."""

    def start(self) -> None:
        """Begin to get ready; returns at once."""

    def examples(self, kind: WorkKind) -> int | None:
        """Return how many examples a job of this kind would use; None if it uses none."""

    def run(self, job: Job, folder: Path, timeout_s: float) -> JobResult:
        """Run a job in its folder.

        Raises:
            WorkerLostError: it died; it is being started again.
            JobTimeoutError: it took longer than `timeout_s` and was killed.
        """

    def close(self) -> None:
        """End every process."""
