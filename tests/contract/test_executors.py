"""The local executor keeps the executors' contract; its workers see no network, and no secret."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import UsageError
from fedfactory.tasks.table import load_task
from fedfactory.testing.executors import DATA, LONG_EPOCHS, SOURCE, ExecutorContract, job_of
from site_agents.executors.executor import Executor, NeverBegunError, NoDataError, WorkStoppedError
from site_agents.executors.local import LocalExecutor, Sources
from site_agents.jobs.job import JOB, read_result, write_file
from site_agents.jobs.settings import SourceOptions, WorkerSettings
from tests.owned_processes import runs
from tests.patience import HANG_S, until

FORBIDDEN = ("flwr", "grpc", "httpx", "hydra", "sklearn", "opacus", "torch._dynamo")
MLP = {"model": "mlp"}


def _executor(
    tmp_path: Path, devices: Sequence[str] = ("cpu",), sources: Sources = lambda: DATA
) -> LocalExecutor:
    return LocalExecutor(
        site="cesga", sources=sources, threads=1, devices=devices, log=tmp_path / "worker.log"
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    load_task("digits").write_initial(MLP, 1, path)
    return path


class TestLocalExecutor(ExecutorContract):
    @pytest.fixture
    def executor(self, tmp_path: Path) -> Iterator[LocalExecutor]:
        executor = _executor(tmp_path)
        executor.start()
        yield executor
        pids = executor.pids
        executor.close()
        assert not any(map(runs, pids))

    def kill(self, executor: Executor) -> None:
        assert isinstance(executor, LocalExecutor)
        for pid in executor.pids:
            os.kill(pid, signal.SIGKILL)


def test_two_devices_work_at_once_and_a_third_order_waits(tmp_path: Path, base: Path) -> None:
    """Two devices, simulated by the CPU twice."""
    executor = _executor(tmp_path, ("cpu", "cpu"))
    with ThreadPoolExecutor() as threads:
        for name in ("a", "b"):
            executor.run(job_of(base), tmp_path / name, 120)
        long = job_of(base, epochs=LONG_EPOCHS)
        running = [threads.submit(executor.run, long, tmp_path / name, 60) for name in ("c", "d")]
        with pytest.raises(TimeoutError):
            running[1].result(1.5)
        assert len(executor.pids) == 2
        with pytest.raises(NeverBegunError):
            executor.run(job_of(base), tmp_path / "e", 0.2)
        executor.close()
        assert [type(one.exception(HANG_S)) for one in running] == [WorkStoppedError] * 2


def test_a_worker_that_dies_idle_is_there_again_before_the_next_order(
    tmp_path: Path, base: Path
) -> None:
    executor = _executor(tmp_path)
    executor.run(job_of(base), tmp_path / "1", 120)
    [first] = executor.pids
    os.kill(first, signal.SIGKILL)
    until(lambda: executor.pids not in ([first], []), 20)
    [second] = executor.pids
    assert executor.run(job_of(base), tmp_path / "2", 120).failure is None
    assert executor.pids == [second]
    executor.stop_work()
    executor.close()
    assert executor.pids == []


def test_a_worker_that_dies_at_its_start_is_not_started_in_a_tight_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = tmp_path / "starts"
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\necho started >> {starts}\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(broken))
    executor = _executor(tmp_path)
    executor.start()
    until(lambda: starts.exists() and starts.read_text().count("\n") == 2, 20)
    time.sleep(1.5)  # the second pause is longer
    executor.close()
    assert starts.read_text().count("\n") == 2


def test_a_worker_gets_the_sources_that_there_are_now(tmp_path: Path) -> None:
    sources: dict[str, SourceOptions] = {}
    executor = _executor(tmp_path, sources=lambda: dict(sources))
    with pytest.raises(NoDataError):
        executor.describe(SOURCE, "digits", MLP)
    sources.update(DATA)
    assert executor.describe(SOURCE, "digits", MLP).train > 0
    executor.close()


def test_an_executor_starts_though_the_sources_cannot_be_told(tmp_path: Path) -> None:
    def sources() -> Mapping[str, SourceOptions]:
        if threading.current_thread().name == "devices":  # at the start; when work comes it holds
            raise UsageError("the policy does not hold")
        return DATA

    executor = _executor(tmp_path, sources=sources)
    executor.start()
    assert executor.describe(SOURCE, "digits", MLP).train > 0
    executor.close()


def test_a_worker_that_does_not_get_ready_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    executor = _executor(tmp_path)
    with pytest.raises(NeverBegunError, match=r"worker\.log"):
        executor.describe(SOURCE, "digits", MLP)
    executor.close()


def test_a_worker_without_a_log_does_not_begin_and_a_later_job_does(
    tmp_path: Path, base: Path
) -> None:
    log = tmp_path / "worker.log"
    log.mkdir()
    executor = _executor(tmp_path)
    with pytest.raises(NeverBegunError, match=r"worker\.log"):
        executor.run(job_of(base), tmp_path / "1", 120)
    log.rmdir()
    assert executor.run(job_of(base), tmp_path / "2", 120).failure is None
    executor.close()


def test_a_worker_sees_no_secret_of_the_agents_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:word@proxy:1")
    monkeypatch.setenv("A_TOKEN", "secret")
    executor = _executor(tmp_path)
    executor.describe(SOURCE, "digits", MLP)
    [pid] = executor.pids
    process = psutil.Process(pid)
    assert not {"HTTPS_PROXY", "A_TOKEN"} & set(process.environ())
    assert "partition" not in " ".join(process.cmdline())
    executor.close()


def test_a_worker_ends_with_its_agent_in_mid_job(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    write_file(folder / JOB, job_of(base, epochs=LONG_EPOCHS))
    process = _start(["-m", "site_agents.worker"], tmp_path)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"job": str(folder)}).encode() + b"\n")
    process.stdin.close()
    assert process.wait(HANG_S) == 0
    assert process.stdout is not None
    process.stdout.close()


def test_a_worker_imports_nothing_that_talks(tmp_path: Path, base: Path) -> None:
    """In a network namespace with no interface where that is permitted."""
    folder = tmp_path / "job"
    folder.mkdir()
    write_file(folder / JOB, job_of(base))
    spy = (
        "import sys, threading, runpy, site_agents.worker.work as w\n"
        "work = w.Worker.work\n"
        "def spied(self, folder):\n"
        "    work(self, folder)\n"
        "    (folder / 'modules').write_text(chr(10).join(sys.modules))\n"
        "w.Worker.work = spied\n"
        "sys.argv[:] = ['worker']\n"
        "runpy.run_module('site_agents.worker', run_name='__main__', alter_sys=True)\n"
    )
    unshare = shutil.which("unshare")
    permitted = unshare and subprocess.run([unshare, "-n", "true"], check=False).returncode == 0
    prefix = (unshare, "-n") if unshare and permitted else ()
    process = _start(["-c", spy], tmp_path, prefix)
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdin.write(json.dumps({"job": str(folder)}).encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"done": "job"}
    process.stdin.close()
    process.wait(HANG_S)
    process.stdout.close()
    assert read_result(folder).failure is None
    modules = (folder / "modules").read_text().splitlines()
    assert [m for m in modules if m.startswith(FORBIDDEN)] == []


def _start(words: list[str], folder: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """Start a worker by hand and wait until it is ready."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    settings = WorkerSettings(site="cesga", sources=DATA, threads=1, device="cpu")
    process.stdin.write(to_json(settings).encode() + b"\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"ready": True}
    return process


def test_data_that_are_gone_are_named_in_the_log_alone(tmp_path: Path) -> None:
    gone = tmp_path / "gone.npz"
    sources = {
        "mine": SourceOptions(
            options={"kind": "npz", "path": str(gone)}, lineage="mine", unit="row"
        )
    }
    executor = _executor(tmp_path, sources=lambda: sources)
    with pytest.raises(NoDataError, match=r"worker\.log") as raised:
        executor.describe("mine", "digits", MLP)
    executor.close()
    assert "gone.npz" not in str(raised.value)
    assert "gone.npz" in (tmp_path / "worker.log").read_text()


def test_a_failure_writes_no_record_into_the_log(tmp_path: Path) -> None:
    marker = 0.123456789
    path = tmp_path / "d.npz"
    np.savez(path, x=np.full((40, 64), marker, np.float32), y=np.arange(40) % 10)
    sources = {
        SOURCE: SourceOptions(
            options={"kind": "npz", "path": str(path)}, lineage="mine", unit="row"
        )
    }
    executor = _executor(tmp_path, sources=lambda: sources)
    base = tmp_path / "base"
    base.write_bytes(b"no model")
    assert executor.run(job_of(base), tmp_path / "1", 120).failure == "bad_model"
    result = executor.run(job_of(tmp_path / "missing"), tmp_path / "2", 120)
    assert result.failure == "work_failed"
    executor.close()
    log = (tmp_path / "worker.log").read_text()
    assert "FileNotFoundError" in log
    assert str(marker)[:6] not in log
