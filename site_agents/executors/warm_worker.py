"""One worker process that stays: torch imported once, data and model in memory.

It is exec'ed with pipes alone; its settings, which name the site's data, go down the pipe and show
in no process list. When the agent dies by whatever means, the pipe closes and the worker ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.codec import to_json
from fedfactory.isolation.launching import isolated
from fedfactory.isolation.mechanism import Network
from site_agents.executors.environment import worker_environment
from site_agents.executors.executor import JobTimeoutError, WorkerLostError
from site_agents.jobs.settings import WorkerSettings

READY_TIMEOUT_S: Final = 300.0


class WarmWorker:
    """A worker process, started at need. One thread at a time may ask; any thread may interrupt."""

    def __init__(self, settings: WorkerSettings, *, network: Network | None, log: Path) -> None:
        self.settings = settings
        self._network = network
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_interrupted = False
        self._unread = b""
        self.began_at = 0.0  # time.monotonic() seconds

    @property
    def has_died(self) -> bool:
        """Whether its process ended, and nobody here wanted it to."""
        ended = self._process is not None and self._process.poll() is not None
        return ended and not self._is_interrupted

    @property
    def pid(self) -> int | None:
        """The worker's process id, while there is one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin to get ready, unless that was done; returns at once."""
        alive = self._process is not None and self._process.poll() is None
        if alive and not self._is_interrupted:
            return
        self.close()
        self._is_interrupted = False
        self.began_at = time.monotonic()
        settings = self.settings
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *isolated(self._network, gpu=settings.device != "cpu"),
                    *("site_agents.worker", "--site", settings.site, "--device", settings.device),
                ],
                env=worker_environment(os.environ, settings.threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # a Ctrl-C meant for the agent lets it finish its order
            )
        self._is_ready = False
        self._unread = b""
        with contextlib.suppress(WorkerLostError):  # it died at once: who asks first is told
            self._send(to_json(settings))

    def wait_ready(self) -> None:
        """Start at need and wait until the worker takes requests.

        Raises:
            WorkerLostError, JobTimeoutError: it did not get ready; its log says why.
        """
        self.start()
        if not self._is_ready:
            self._answer(READY_TIMEOUT_S)
            self._is_ready = True

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request to a worker that is ready and return its answer.

        Raises:
            WorkerLostError: it died. JobTimeoutError: it took too long, and was ended.
        """
        self._send(json.dumps(request))
        return self._answer(timeout_s)

    def interrupt(self) -> None:
        """End the process, from any thread: whoever waits for its answer gets WorkerLostError."""
        process = self._process
        self._is_interrupted = True  # it may take a moment to die, and must get no job meanwhile
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process and free its pipes. The next request starts another."""
        self.interrupt()
        process, self._process = self._process, None
        if process is None:
            return
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _send(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._lost() from error

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(self._read_line(timeout_s))
        except (WorkerLostError, JobTimeoutError):
            self.close()
            raise
        return answer

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
                    raise self._lost()
                self._unread += found
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _lost(self) -> WorkerLostError:
        return WorkerLostError(f"the worker on {self.settings.device} died; see {self._log}")
