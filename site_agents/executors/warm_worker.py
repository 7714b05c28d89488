"""A worker process that stays: torch imported once, data and model in memory.

It is exec'ed with pipes alone. When the agent dies by whatever means, the pipe closes and the
worker ends.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.orders import WorkKind
from site_agents.executors.executor import JobTimeoutError, WorkerLostError
from site_agents.jobs.job import JOB, RESULT, Job, JobResult, read_result, write_file

READY_TIMEOUT_S: Final = 300.0
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WarmWorker:
    """The local executor."""

    def __init__(
        self, *, site: str, data: Mapping[str, Any], threads: int, device: str, log: Path
    ) -> None:
        self._arguments = [
            *(sys.executable, "-P", "-m", "site_agents.worker", "--site", site),
            *("--data", json.dumps(dict(data)), "--threads", str(threads), "--device", device),
        ]
        self._environment = _environment(threads)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: dict[str, Any] | None = None
        self._unread = b""

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """See Executor."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C meant for the agent lets it finish its order
            )
        self._ready = None
        self._unread = b""

    def examples(self, kind: WorkKind) -> int | None:
        """See Executor."""
        count: int | None = self._wait_ready()[kind]
        return count

    def run(self, job: Job, folder: Path, timeout_s: float) -> JobResult:
        """See Executor."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / RESULT).unlink(missing_ok=True)
        write_file(folder / JOB, job)
        self._wait_ready()
        try:
            self._send(folder)
            self._read_line(timeout_s)
        except (WorkerLostError, JobTimeoutError):
            self.close()
            self.start()
            raise
        return read_result(folder)

    def close(self) -> None:
        """See Executor."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _wait_ready(self) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start()
        if self._ready is None:
            self._ready = json.loads(self._read_line(READY_TIMEOUT_S))
        return self._ready

    def _send(self, folder: Path) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(str(folder).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise WorkerLostError from error

    def _read_line(self, timeout_s: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + timeout_s
        pipe = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise JobTimeoutError(f"no answer from the worker in {timeout_s:.0f} s")
                found = os.read(pipe, 65536)
                if not found:
                    raise WorkerLostError(f"the worker died; see {self._log}")
                self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        return line


def _environment(threads: int) -> dict[str, str]:
    # A worker has no business with proxies, nor with more threads than it was given.
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {**kept, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
