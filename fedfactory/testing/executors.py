"""The contract of executors, for ours and for those of other packages.

Subclass ExecutorContract, override the `executor` fixture with one that works on the digits task of
site 'cesga' (iid shares of sites cesga and lumi, seed 1), and override `kill` to end its process.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from fedfactory.contracts.orders import TrainParameters, WorkKind
from fedfactory.tasks.table import load_task
from site_agents.executors.executor import Executor, JobTimeoutError, WorkerLostError
from site_agents.jobs.job import UPDATE, Job

DATA = {
    "source": "partition",
    "task": "digits",
    "path": None,
    "partition": {"kind": "iid", "alpha": None, "labels_per_site": None},
    "sites": ["cesga", "lumi"],
    "seed": 1,
}
_LONG_EPOCHS = 100_000


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
        result = executor.run(_job(base), tmp_path / "train", 120)
        assert result.failure is None
        assert result.update is not None
        assert (tmp_path / "train" / UPDATE).stat().st_size == result.update.bytes
        measured = executor.run(_job(base, kind="evaluate"), tmp_path / "evaluate", 120)
        assert set(measured.metrics) == {"loss", "accuracy"}
        assert measured.examples == executor.examples("evaluate")

    def test_the_same_job_gives_the_same_bytes(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """Also when another job came between."""
        first = executor.run(_job(base), tmp_path / "1", 120)
        executor.run(_job(base, seed=2), tmp_path / "2", 120)
        assert executor.run(_job(base), tmp_path / "3", 120).update == first.update

    def test_a_base_of_another_model_is_a_failure_by_code(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """The executor lives on."""
        other = tmp_path / "other.safetensors"
        load_task("digits").write_initial({"model": "cnn"}, 1, other)
        assert executor.run(_job(other), tmp_path / "1", 120).failure == "bad_model"
        assert executor.run(_job(base), tmp_path / "2", 120).failure is None

    def test_a_killed_process_is_told_and_replaced(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """WorkerLostError, then work as before."""
        executor.run(_job(base), tmp_path / "0", 120)
        timer = threading.Timer(0.5, self.kill, (executor,))
        timer.start()
        with pytest.raises(WorkerLostError):
            executor.run(_job(base, epochs=_LONG_EPOCHS), tmp_path / "1", 120)
        timer.join()
        assert executor.run(_job(base), tmp_path / "2", 120).failure is None

    def test_a_job_that_takes_too_long_is_ended(
        self, executor: Executor, base: Path, tmp_path: Path
    ) -> None:
        """JobTimeoutError, then work as before."""
        executor.run(_job(base), tmp_path / "0", 120)
        with pytest.raises(JobTimeoutError):
            executor.run(_job(base, epochs=_LONG_EPOCHS), tmp_path / "1", 0.5)
        assert executor.run(_job(base), tmp_path / "2", 120).failure is None


def _job(base: Path, *, kind: WorkKind = "train", seed: int = 1, epochs: int = 1) -> Job:
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
    )
