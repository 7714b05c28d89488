"""The process that measures models on a public set, one after another, for as long as it is asked.

Its parent writes {"model": PATH} a line and reads {"metrics": {...}} or {"error": TEXT}; the first
answer, {"ready": true} or an error, comes by itself. While it works it says {"beat": true} every
BEAT_S seconds, so that a frozen one is told from a slow one.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.public_set import read_public
from fedfactory.tasks.table import check_task
from fedfactory.tasks.task import Workload

BEAT_S: Final = 2.0
_PR_SET_PDEATHSIG: Final = 1


def serve(task: str, parameters: Mapping[str, Scalar], data: Path, parent_pid: int) -> int:
    """Answer until standard input ends or the parent dies; return the exit code."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we asked
        return 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    answers = _Answers()
    try:
        with answers.beating():
            workload = _open(task, parameters, data)
    except FedfactoryError as error:
        answers.say({"error": error.public_message})
        return error.exit_code
    answers.say({"ready": True})
    for line in sys.stdin:
        with answers.beating():
            answer = _measure(workload, Path(json.loads(line)["model"]))
        answers.say(answer)
    return 0


def _open(name: str, parameters: Mapping[str, Scalar], data: Path) -> Workload:
    task = check_task(name, parameters)
    examples = read_public(data, task, parameters)
    return task.open(parameters, SiteData(train=examples, test=examples), "cpu")


def _measure(workload: Workload, model: Path) -> dict[str, Any]:
    try:
        metrics = workload.evaluate(base=model).metrics
    except FedfactoryError as error:
        return {"error": error.public_message}
    except Exception as error:  # noqa: BLE001  whatever a model does, the next one is measured too
        return {"error": f"{type(error).__name__}: {error}"}
    if bad := sorted(name for name, value in metrics.items() if not math.isfinite(value)):
        return {"error": f"the model's metric '{bad[0]}' is not finite"}
    return {"metrics": {name: float(value) for name, value in metrics.items()}}


class _Answers:
    """Standard output for answers alone: what a task prints goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def say(self, answer: Mapping[str, Any]) -> None:
        with self._lock:
            self._file.write(json.dumps(answer, allow_nan=False) + "\n")
            self._file.flush()

    def beating(self) -> _Beating:
        return _Beating(self)


class _Beating:
    def __init__(self, answers: _Answers) -> None:
        self._answers = answers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._answers.say({"beat": True})

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
