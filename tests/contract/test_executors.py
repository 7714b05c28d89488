"""The warm worker keeps the executors' contract; its process sees no network library, no secret."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedfactory.testing.executors import DATA, ExecutorContract, _job
from site_agents.executors.executor import WorkerLostError
from site_agents.executors.warm_worker import WarmWorker

FORBIDDEN = ("flwr", "grpc", "httpx", "hydra", "sklearn", "opacus", "torch._dynamo")


def _worker(tmp_path: Path, data: dict[str, object] = DATA) -> WarmWorker:
    return WarmWorker(site="cesga", data=data, threads=1, device="cpu", log=tmp_path / "worker.log")


class TestWarmWorker(ExecutorContract):
    @pytest.fixture
    def executor(self, tmp_path: Path) -> Iterator[WarmWorker]:
        worker = _worker(tmp_path)
        worker.start()
        yield worker
        pid = worker.pid
        worker.close()
        assert pid is not None
        assert not psutil.pid_exists(pid)

    def kill(self, executor: WarmWorker) -> None:
        assert executor.pid is not None
        os.kill(executor.pid, signal.SIGKILL)


def test_a_worker_ends_with_its_agent_in_mid_job(tmp_path: Path) -> None:
    from fedfactory.tasks.table import load_task
    from site_agents.jobs.job import JOB, write_file

    base = tmp_path / "base"
    load_task("digits").write_initial({"model": "mlp"}, 1, base)
    folder = tmp_path / "job"
    folder.mkdir()
    write_file(folder / JOB, _job(base, epochs=100_000))
    process = _start(["-m", "site_agents.worker"], tmp_path)
    assert process.stdout is not None
    assert process.stdin is not None
    assert json.loads(process.stdout.readline())["ready"]
    process.stdin.write(f"{folder}\n".encode())
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdout.close()


def _start(words: list[str], folder: Path, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [
                *prefix, sys.executable, *words, "--site", "cesga", "--data", json.dumps(DATA),
                "--threads", "1", "--device", "cpu",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip


def test_a_worker_imports_nothing_that_talks(tmp_path: Path) -> None:
    """In a network namespace with no interface where that is permitted."""
    base = tmp_path / "base"
    from fedfactory.tasks.table import load_task
    from site_agents.jobs.job import JOB, read_result, write_file

    load_task("digits").write_initial({"model": "mlp"}, 1, base)
    folder = tmp_path / "job"
    folder.mkdir()
    write_file(folder / JOB, _job(base))
    spy = (
        "import sys, threading, runpy, site_agents.worker.work as w\n"
        "work = w.Worker.work\n"
        "def spied(self, folder):\n"
        "    work(self, folder)\n"
        "    (folder / 'modules').write_text(chr(10).join(sys.modules))\n"
        "w.Worker.work = spied\n"
        "sys.argv[0] = 'worker'\n"
        "runpy.run_module('site_agents.worker', run_name='__main__', alter_sys=True)\n"
    )
    unshare = shutil.which("unshare")
    permitted = unshare and subprocess.run([unshare, "-n", "true"], check=False).returncode == 0
    prefix = (unshare, "-n") if unshare and permitted else ()
    process = _start(["-c", spy], tmp_path, prefix)
    assert process.stdout is not None
    assert process.stdin is not None
    assert json.loads(process.stdout.readline())["ready"]
    process.stdin.write(f"{folder}\n".encode())
    process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"done": "job"}
    process.stdin.close()
    process.wait(10)
    process.stdout.close()
    assert read_result(folder).failure is None
    modules = (folder / "modules").read_text().splitlines()
    assert [m for m in modules if m.startswith(FORBIDDEN)] == []


def test_a_worker_without_its_data_is_lost_and_its_log_says_why(tmp_path: Path) -> None:
    path = tmp_path / "gone.npz"
    worker = _worker(tmp_path, {**DATA, "source": "npz", "path": str(path)})
    worker.start()
    with pytest.raises(WorkerLostError, match=r"worker\.log"):
        worker.examples("train")
    worker.close()
    assert "gone.npz" in (tmp_path / "worker.log").read_text()


def test_a_failure_writes_no_record_into_the_log(tmp_path: Path) -> None:
    marker = 0.123456789
    x = np.full((40, 64), marker, np.float32)
    path = tmp_path / "d.npz"
    np.savez(path, x=x, y=np.arange(40) % 10)
    worker = _worker(tmp_path, {**DATA, "source": "npz", "path": str(path)})
    worker.start()
    base = tmp_path / "base"
    base.write_bytes(b"no model")
    assert worker.run(_job(base), tmp_path / "1", 120).failure == "bad_model"
    result = worker.run(_job(tmp_path / "missing"), tmp_path / "2", 120)
    assert result.failure == "work_failed"
    worker.close()
    log = (tmp_path / "worker.log").read_text()
    assert "FileNotFoundError" in log
    assert str(marker)[:6] not in log
