"""The contract of executors, for ours and for those of other packages.

Subclass ExecutorContract, override the `executor` fixture with one of site 'cesga' that has the
sources DATA and one device, and override `kill` to end all its processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fedfactory.contracts.orders import TrainParameters, WorkKind
from fedfactory.tasks.rehearsal import Rehearsal
from fedfactory.tasks.table import load_task
from site_agents.executors.executor import (
    Executor,
    JobTimeoutError,
    NeverBegunError,
    NoDataError,
    UnfitWorkError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.jobs.job import RESULT, UPDATE, Job, JobResult, JobTrial
from site_agents.jobs.settings import SourceOptions

SOURCE = "share"
DATA = {
    SOURCE: SourceOptions(
        options={
            "kind": "partition",
            "task": "digits",
            "path": None,
            "partition": {"kind": "iid", "alpha": None, "labels_per_site": None},
            "sites": ["cesga", "lumi"],
            "site": "cesga",
            "seed": 1,
        },
        lineage=SOURCE,
        unit="row",
    )
}
LONG_EPOCHS = 100_000


def _trial(base: Path, rehearsal: Rehearsal) -> JobTrial:
    return JobTrial(
        task="digits", task_parameters={"model": "mlp"}, base=str(base), rehearsal=rehearsal
    )


class ExecutorContract:
    """What an agent relies on."""

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        """An initial model of the digits MLP."""
        path = tmp_path / "base.safetensors"
        load_task("digits").write_initial({"model": "mlp"}, 1, path)
        return path

    def kill(self, executor: Executor) -> None:
        """End the executor's process as a crash would."""
        raise AssertionError(f"say how to kill {executor}")

    def test_trains_and_evaluates(self, executor: Executor, base: Path, tmp_path: Path) -> None:
        """A job's result and its update lie in its folder."""
        result = executor.run(job_of(base), tmp_path / "train", 120)
        assert result.failure is None
        assert result.update is not None
        assert (tmp_path / "train" / UPDATE).stat().st_size == result.update.bytes
        measured = executor.run(job_of(base, kind="evaluate"), tmp_path / "evaluate", 120)
        assert set(measured.metrics) == {"loss", "accuracy"}
        facts = executor.describe(SOURCE, "digits", {"model": "mlp"})
        assert (result.examples, measured.examples) == (facts.train, facts.evaluate)

    def test_a_source_that_is_not_there_is_told(self, executor: Executor) -> None:
        """NoDataError, and the executor lives on."""
        with pytest.raises(NoDataError):
            executor.describe("other", "digits", {"model": "mlp"})
        with pytest.raises(NoDataError):
            executor.check_form("other", "digits", {"model": "mlp"})
        executor.check_form(SOURCE, "digits", {"model": "mlp"})
        assert executor.describe(SOURCE, "digits", {"model": "mlp"}).train > 0

    def test_the_same_job_gives_the_same_bytes(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """Also when another job came between."""
        first = executor.run(job_of(base), tmp_path / "1", 120)
        executor.run(job_of(base, seed=2), tmp_path / "2", 120)
        assert executor.run(job_of(base), tmp_path / "3", 120).update == first.update

    def test_a_base_of_another_model_is_a_failure_by_code(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """The executor lives on."""
        other = tmp_path / "other.safetensors"
        load_task("digits").write_initial({"model": "cnn"}, 1, other)
        assert executor.run(job_of(other), tmp_path / "1", 120).failure == "bad_model"
        assert executor.run(job_of(base), tmp_path / "2", 120).failure is None

    def test_private_work_is_tried_without_data(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """Its passes for a model that fits; UnfitWorkError for one that does not."""
        rehearsal = Rehearsal(kind="train", rows=48, grad_sample_mode="hooks")
        assert executor.rehearse(_trial(base, rehearsal)).rows in {1, 48}
        other = tmp_path / "other.safetensors"
        load_task("digits").write_initial({"model": "cnn"}, 1, other)
        with pytest.raises(UnfitWorkError) as error:
            executor.rehearse(_trial(other, rehearsal))
        assert error.value.code == "bad_model"
        assert executor.run(job_of(base), tmp_path / "1", 120).failure is None

    def test_a_killed_process_is_told_and_replaced(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """WorkerLostError, then work as before."""
        executor.run(job_of(base), tmp_path / "0", 120)
        timer = threading.Timer(0.5, self.kill, (executor,))
        timer.start()
        with pytest.raises(WorkerLostError):
            executor.run(job_of(base, epochs=LONG_EPOCHS), tmp_path / "1", 120)
        timer.join()
        assert executor.run(job_of(base), tmp_path / "2", 120).failure is None

    def test_a_job_that_takes_too_long_is_ended(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """JobTimeoutError, then work as before."""
        executor.run(job_of(base), tmp_path / "0", 120)
        with pytest.raises(JobTimeoutError):
            executor.run(job_of(base, epochs=LONG_EPOCHS), tmp_path / "1", 0.5)
        assert executor.run(job_of(base), tmp_path / "2", 120).failure is None

    def test_a_folder_that_cannot_be_written_holds_no_job(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """What could not be asked for has not begun: no data was touched."""
        (tmp_path / "file").touch()
        with pytest.raises(NeverBegunError):
            executor.run(job_of(base), tmp_path / "file" / "job", 120)

    def test_jobs_on_one_device_follow_one_another(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """What waits longer than its time has not begun."""
        executor.run(job_of(base), tmp_path / "0", 120)
        busy = self._training(executor, base, tmp_path / "long")
        with busy, pytest.raises(NeverBegunError):
            executor.run(job_of(base, seed=2), tmp_path / "1", 0.5)
        assert not (tmp_path / "1" / RESULT).exists()

    def test_work_that_is_paid_for_waits_and_then_has_all_of_its_time(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """Who keeps a device busy cannot make another's work fail."""
        executor.run(job_of(base), tmp_path / "0", 120)
        job = replace(job_of(base), begin_by=time.time() + 120)
        with ThreadPoolExecutor() as threads:
            long = threads.submit(
                executor.run, job_of(base, epochs=LONG_EPOCHS), tmp_path / "long", 12
            )
            with pytest.raises(TimeoutError):
                long.result(0.7)
            assert executor.run(job, tmp_path / "1", 10).failure is None
            assert isinstance(long.exception(10), JobTimeoutError)

    def test_work_that_is_paid_for_is_not_begun_late(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """Nobody would take its result."""
        executor.run(job_of(base), tmp_path / "0", 120)
        job = replace(job_of(base), begin_by=time.time() + 1.5)
        busy = self._training(executor, base, tmp_path / "long")
        with busy, pytest.raises(NeverBegunError):
            executor.run(job, tmp_path / "1", 120)
        assert not (tmp_path / "1" / RESULT).exists()

    def test_an_evaluation_does_not_wait_for_a_training(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """Nor does a question about the data."""
        executor.run(job_of(base), tmp_path / "0", 120)
        with self._training(executor, base, tmp_path / "long") as training:
            assert executor.describe(SOURCE, "digits", {"model": "mlp"}).train > 0
            measured = executor.run(job_of(base, kind="evaluate"), tmp_path / "1", 120)
            assert measured.failure is None
            assert not training.done()

    def test_stopping_ends_what_runs_and_what_waits(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """What ran was stopped, what waited never began; later work is done."""
        executor.run(job_of(base), tmp_path / "0", 120)
        with ThreadPoolExecutor() as threads:
            with self._training(executor, base, tmp_path / "long") as training:
                waiting = threads.submit(executor.run, job_of(base), tmp_path / "1", 120)
                with pytest.raises(TimeoutError):
                    waiting.result(0.3)
            assert isinstance(training.exception(10), WorkStoppedError)
            assert isinstance(waiting.exception(10), NeverBegunError)
        assert executor.run(job_of(base), tmp_path / "2", 120).failure is None

    def test_draining_turns_away_only_what_waits(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """What runs goes on, later work is done."""
        executor.run(job_of(base), tmp_path / "0", 120)
        busy = self._training(executor, base, tmp_path / "long")
        with ThreadPoolExecutor() as threads, busy as training:
            waiting = threads.submit(executor.run, job_of(base), tmp_path / "1", 120)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            executor.drain()
            assert isinstance(waiting.exception(10), NeverBegunError)
            assert not training.done()
        assert executor.run(job_of(base), tmp_path / "2", 120).failure is None

    @contextmanager
    def _training(
        self, executor: Executor, base: Path, folder: Path
    ) -> Iterator[Future[JobResult]]:
        """Keep a device busy; `stop_work` at the end."""
        with ThreadPoolExecutor() as threads:
            future = threads.submit(executor.run, job_of(base, epochs=LONG_EPOCHS), folder, 120)
            try:
                with pytest.raises(TimeoutError):
                    future.result(0.7)
                yield future
            finally:
                executor.stop_work()


def job_of(base: Path, *, kind: WorkKind = "train", seed: int = 1, epochs: int = 1) -> Job:
    """Return a job on the digits task."""
    training = TrainParameters(
        local_epochs=epochs,
        batch_size=32,
        lr=0.1,
        momentum=0.0,
        proximal_mu=0.0,
        max_steps=None,
    )
    return Job(
        kind=kind,
        task="digits",
        task_parameters={"model": "mlp"},
        training=training if kind == "train" else None,
        seed=seed,
        site="cesga",
        round=1,
        base=str(base),
        source=SOURCE,
        mechanism=None,
        measurement=None,
    )
