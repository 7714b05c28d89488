"""What an agent asks of an executor: run one job, describe one source, or say how it was lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.rehearsal import Passes
from site_agents.jobs.job import Job, JobResult, JobTrial
from site_agents.jobs.settings import SourceFacts


class WorkerLostError(EnvironmentFailedError):
    """The worker died before its answer was there."""


class JobTimeoutError(EnvironmentFailedError):
    """The job took longer than it may, and was ended."""


class WorkStoppedError(EnvironmentFailedError):
    """The site's administrator stopped the work: some of it may have been done."""


class NeverBegunError(EnvironmentFailedError):
    """The job was not begun: no worker was free or got ready, or the agent takes no more work."""


class NoDataError(EnvironmentFailedError):
    """The site's data of that name cannot be read, or does not fit the task."""


class UnfitWorkError(EnvironmentFailedError):
    """Private work cannot be done as ordered, whatever the data. `code` is a key of REFUSALS."""

    def __init__(self, code: str, finding: str) -> None:
        super().__init__(finding)
        self.code = code


class Executor(Protocol):
    """Runs jobs in processes that see data and no network. Safe to use from several threads."""

    def start(self) -> None:
        """Begin to get ready; returns at once. Without it, the first job or question does."""

    def describe(
        self, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> SourceFacts:
        """Say what a source holds for a task, now.

        Raises:
            NoDataError: it cannot be read or does not fit; the executor's log says why.
            WorkerLostError, JobTimeoutError, WorkStoppedError, NeverBegunError: as `run`.
        """

    def check_form(self, source: str, task: str, task_parameters: Mapping[str, Scalar]) -> None:
        """Check that a source has the form that a task wants, now; no record of it is read.

        Raises:
            NoDataError: it has not; the executor's log says why.
            WorkerLostError, JobTimeoutError, WorkStoppedError, NeverBegunError: as `run`.
        """

    def rehearse(self, trial: JobTrial) -> Passes:
        """Try private work without data, where it would be done; return how it will go.

        Raises:
            UnfitWorkError: the base model or the device is not fit for it.
            WorkerLostError, JobTimeoutError, WorkStoppedError, NeverBegunError: as `run`.
        """

    def run(self, job: Job, folder: Path, timeout_s: float) -> JobResult:
        """Run a job in its folder, when there is room for it.

        A `train` job waits for a device; an `evaluate` job never waits for a `train` job to end.
        A job with `begin_by` waits until then, and has all of `timeout_s` from when it begins:
        others who keep a device busy can neither have it begun in vain nor have it fail.

        Raises:
            WorkerLostError: its process died; another takes the next job.
            JobTimeoutError: it took longer than `timeout_s` and was ended.
            WorkStoppedError: `stop_work` ended it.
            NeverBegunError: the folder cannot be written, no device was free in time, a worker did
                not get ready, or `drain` or `stop_work` came while it waited.
        """

    def drain(self) -> None:
        """Turn away the jobs that wait for room; those that run go on, later ones are taken."""

    def stop_work(self) -> None:
        """End every job at once, also those that wait; later ones are taken."""

    def close(self) -> None:
        """End every process."""
