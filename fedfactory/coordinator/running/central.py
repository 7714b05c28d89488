"""Measures each round's model on a public set, in a warm process: torch never enters this one.

The process dies with the thread that made it, at the latest, and is made anew when it was killed
or is frozen.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from fedfactory.contracts.errors import DataError, EnvironmentFailedError, FedfactoryError
from fedfactory.contracts.orders import Scalar
from fedfactory.isolation.launching import isolated

# It beats every two seconds while it works; importing torch may hold that up on a busy machine.
SILENCE_S: Final = 60.0
ATTEMPTS: Final = 3
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class MeasuringError(FedfactoryError):
    """The model cannot be measured on the public set."""


class CentralEvaluator:
    """Measures models of one task on the public set in `data` (NPZ; tasks/public_set.py).

    One thread measures; any may close. The same model and set give the same metrics, bit for bit.
    """

    def __init__(self, task: str, parameters: Mapping[str, Scalar], data: Path) -> None:
        self._command = (
            *(*isolated(None, gpu=False), "fedfactory.tasks.model_jobs", "measure"),
            *("--task", task, "--parameters", json.dumps(dict(parameters))),
            *("--data", str(data), "--parent", str(os.getpid())),
        )
        self._busy = threading.Lock()  # held while a model is measured
        self._change = threading.Lock()  # guards the two below
        self._closed = False
        self._process: _Process | None = _Process(self._command)

    @property
    def pid(self) -> int | None:
        """The process that measures, None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def measure(self, model: Path) -> dict[str, float]:
        """Return the model's metrics, by the names that the sites' evaluations have.

        Raises:
            MeasuringError: this model cannot be measured, another one may be; or it was closed.
            DataError: the set cannot be read, or does not fit the task.
            EnvironmentFailedError: the process died or froze ATTEMPTS times.
        """
        with self._busy:
            for _ in range(ATTEMPTS):
                try:
                    return self._running().measure(model)
                except _GoneError:
                    self._drop()
                except DataError:
                    self._drop()
                    raise
        raise EnvironmentFailedError(
            f"the process that measures models on the public set died or froze {ATTEMPTS} times;"
            " its own words are in the run's log"
        )

    def close(self) -> None:
        """End the process; a model that is being measured is given up."""
        with self._change:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        with self._busy:
            self._drop()

    def _running(self) -> _Process:
        with self._change:
            if self._closed:
                raise MeasuringError("nothing is measured any more: the run is closing")
            if self._process is None:
                self._process = _Process(self._command)
            return self._process

    def _drop(self) -> None:
        with self._change:
            if self._process is not None:
                self._process.release()
                self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _GoneError(Exception):
    """The process ended, or says nothing any more."""


class _Process:
    def __init__(self, command: tuple[str, ...]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)
        self._heard = b""
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def measure(self, model: Path) -> dict[str, float]:
        if not self._ready:
            first = self._answer()
            if "error" in first:
                raise DataError(str(first["error"]))
            self._ready = True
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"model": str(model)}).encode() + b"\n")
        except OSError as error:
            raise _GoneError from error
        answer = self._answer()
        if "error" in answer:
            raise MeasuringError(f"the model cannot be measured: {answer['error']}")
        return {str(name): float(value) for name, value in answer["metrics"].items()}

    def _answer(self) -> dict[str, Any]:
        while True:
            line, found, rest = self._heard.partition(b"\n")
            if not found:
                self._listen()
                continue
            self._heard = rest
            answer: dict[str, Any] = json.loads(line)
            if "beat" not in answer:
                return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        if not self._selector.select(SILENCE_S):
            raise _GoneError
        piece = os.read(self._process.stdout.fileno(), 1 << 16)
        if not piece:
            raise _GoneError
        self._heard += piece

    def kill(self) -> None:
        self._process.kill()

    def release(self) -> None:
        self.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
