"""What a worker does: keeps data and models in memory and turns jobs into results.

Once data is touched every failure is the one code `work_failed`; the log gets the error's type and
where it arose, never its message, which may hold values of records.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import ModelSpec
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import ModelMismatchError, Outcome, Workload
from site_agents.data.sources import load_site_data
from site_agents.jobs.job import RESULT, UPDATE, Job, JobResult, read_job, write_file

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("site_agents.worker")


class Worker:
    """One site's data and the models it has worked on."""

    def __init__(self, *, site: str, data: Mapping[str, Any], threads: int, device: str) -> None:
        self._site = site
        self._options = data
        self._asked_device = device
        self._threads = threads
        self._data: dict[str, SiteData | None] = {}
        self._workloads: dict[tuple[str, str], Workload] = {}

    def ready(self) -> dict[str, Any]:
        """Load the configured task's data; return what the agent may know of it."""
        name = self._options["task"]
        data = self._data_for(name)
        return {
            "ready": True,
            "device": self._device() if data else "none",
            "train": len(data.train) if data else None,
            "evaluate": len(data.test) if data else None,
        }

    def work(self, folder: Path) -> None:
        """Do the job in a folder; its result is there when this returns."""
        job = read_job(folder)
        began = time.perf_counter()
        try:
            workload = self._workload(job.task, job.task_parameters)
            outcome = self._run(job, workload, folder)
        except (ModelMismatchError, IntegrityError) as error:
            log.warning("round %d: %s", job.round, error)
            write_file(folder / RESULT, _failed("bad_model", began))
        except Exception as error:  # noqa: BLE001  the boundary: a worker answers every job
            frames = "".join(traceback.format_tb(error.__traceback__))
            # Not log.exception: it would write the message.
            log.error("round %d: %s at\n%s", job.round, type(error).__name__, frames)  # noqa: TRY400
            write_file(folder / RESULT, _failed("work_failed", began))
        else:
            write_file(folder / RESULT, _done(outcome, workload.spec, began))

    def _run(self, job: Job, workload: Workload, folder: Path) -> Outcome:
        base = Path(job.base)
        if job.training is None:
            return workload.evaluate(base=base)
        seed = derive_seed(job.seed, job.site, job.round, job.kind)
        return workload.train(base=base, out=folder / UPDATE, training=job.training, seed=seed)

    def _workload(self, task: str, parameters: Mapping[str, Scalar]) -> Workload:
        key = (task, to_json(parameters))
        if key not in self._workloads:
            found = load_task(task)
            self._workloads[key] = found.open(
                parameters, self._data_for(task), self._device() if found.data else "none"
            )
        return self._workloads[key]

    @cache  # noqa: B019  one worker a process
    def _device(self) -> str:
        """Choose the device at first need: a task without data needs no torch."""
        return _choose_device(self._asked_device, self._threads)

    def _data_for(self, task: str) -> SiteData | None:
        if task not in self._data:
            found = load_task(task)
            wanted = found.data is not None
            self._data[task] = load_site_data(self._options, self._site, found) if wanted else None
        return self._data[task]


def _choose_device(asked: str, threads: int) -> str:
    import torch

    torch.set_num_threads(threads)
    if asked == "cuda" and not torch.cuda.is_available():
        raise SystemExit("worker.device=cuda: torch sees no CUDA device here; use auto or cpu")
    return "cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu"


def _failed(code: str, began: float) -> JobResult:
    seconds = time.perf_counter() - began
    return JobResult(
        failure=code, examples=None, metrics={}, seconds=seconds, declared=None, update=None
    )


def _done(outcome: Outcome, spec: ModelSpec, began: float) -> JobResult:
    return JobResult(
        failure=None,
        examples=outcome.examples,
        # What diverged has no JSON form; the guard refuses the update that goes with it.
        metrics={name: v for name, v in outcome.metrics.items() if math.isfinite(v)},
        seconds=time.perf_counter() - began,
        declared=spec,
        update=outcome.update,
    )
