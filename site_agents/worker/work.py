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
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import DataError, EnvironmentFailedError, IntegrityError
from fedfactory.contracts.model import ModelSpec
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import DataSchema, SiteData
from fedfactory.tasks.rehearsal import Passes
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.table import check_task, load_task
from fedfactory.tasks.task import ModelMismatchError, Outcome, Task, Workload
from fedfactory.wire.arrays import ArrayFile
from site_agents.data.files import Stamp
from site_agents.data.pieces import WINDOWS_NEED_A_UNIT
from site_agents.data.source import Source, schema_of
from site_agents.data.sources import open_source
from site_agents.data.versions import Version, compare
from site_agents.jobs.job import RESULT, UPDATE, Job, JobResult, JobTrial, read_job, write_file
from site_agents.jobs.settings import SourceFacts, WorkerSettings

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
log = logging.getLogger("site_agents.worker")
K = TypeVar("K", bound=tuple[Any, ...])
V = TypeVar("V")
HELD: Final = 4  # data sets, and models: parameters vary within a policy's ranges


class _Held(Generic[K, V]):
    """What was made last, by keys that begin with the name of its source."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """Return what was made for the key, if it is still held."""
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Hold a value; the oldest gives way."""
        while len(self._values) >= HELD:
            del self._values[next(iter(self._values))]
        self._values[key] = value

    def drop(self, source: str) -> None:
        """Forget what was made of a source."""
        self._values = {key: v for key, v in self._values.items() if key[0] != source}


class Worker:
    """One site's data, read when first asked for, and the models it has worked on."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._sources: dict[str, Source] = {}
        self._versions: dict[str, tuple[Stamp | None, Version]] = {}
        self._forms = _Held[tuple[str, DataSchema], Stamp | None]()
        self._data = _Held[tuple[str, DataSchema, bool], SiteData]()
        self._workloads = _Held[tuple[str | None, str, str, bool], Workload]()
        self._ready = False

    def check_form(self, source: str, task: str, parameters: Mapping[str, Scalar]) -> None:
        """Check that a source is there and has the form that a task wants; no record is read.

        Raises:
            UsageError: no such source, or its options do not fit its kind.
            DataError: missing, unreadable, or of another form.
        """
        found, schema = self._source(source), schema_of(load_task(task), parameters)
        unit = self._settings.sources[source].unit
        if schema.windows is not None and unit == "row":
            raise DataError(f"data '{source}': {WINDOWS_NEED_A_UNIT}, and in policy.yaml")
        if found.by_unit is not None:
            _check_unit(source, by_unit=found.by_unit, unit=unit)
        key, stamp = (source, schema), found.stamp()
        if stamp is None or self._forms.get(key) != stamp:
            found.check_form(schema)
            self._forms.put(key, stamp)

    def describe(self, source: str, task: str, parameters: Mapping[str, Scalar]) -> SourceFacts:
        """Read a source as a task wants it, again if it changed, and say what it holds.

        Raises:
            UsageError: no such source, or its options do not fit its kind.
            DataError: missing, unreadable, of another form, or too few. No value of a record.
        """
        stamp = self._notice_change(source)
        data = self._data_for(source, task, parameters, private=False)
        if stamp != self._source(source).stamp():
            del self._versions[source]
            raise DataError(f"data '{source}' changed while it was read; ask again")
        return SourceFacts(
            train=len(data.train),
            evaluate=len(data.test),
            fingerprint=self._versions[source][1].fingerprint,
        )

    def rehearse(self, trial: JobTrial) -> Passes:
        """Hold the base model against the task's, and try private work without data.

        Raises:
            UsageError: no such task, or its parameters do not fit.
            ModelMismatchError: the base model, the network or the device is not fit for it.
            IntegrityError, ProtocolError: the base is no whole model.
        """
        task = check_task(trial.task, trial.task_parameters)
        device = self._device()
        if trial.base is not None:
            with ArrayFile(Path(trial.base)) as file:
                difference = task.model_spec(trial.task_parameters).difference(file.spec)
            if difference:
                raise ModelMismatchError(f"the base model does not fit the task: {difference}")
        return task.rehearse(trial.task_parameters, device, trial.rehearsal)

    def work(self, folder: Path) -> None:
        """Do the job in a folder; its result is there when this returns."""
        job = read_job(folder)
        began = time.perf_counter()
        try:
            workload = self._workload(job)
            outcome = _run(job, workload, folder)
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

    def _workload(self, job: Job) -> Workload:
        private = job.mechanism is not None or job.measurement is not None
        if job.source is not None:
            try:
                self._notice_change(job.source)
            except DataError as error:
                if not private:
                    raise
                # Which version it is may follow from a record that cannot be read.
                log.warning("%s; it is read anew", error)
                self._forget(job.source)
        key = (job.source, job.task, to_json(job.task_parameters), private)
        found = self._workloads.get(key)
        if found is None:
            task, parameters = load_task(job.task), job.task_parameters
            if job.source is None:
                found = task.open(parameters, None, "none")
            else:
                data = self._data_for(job.source, job.task, parameters, private=private)
                found = task.open(parameters, data, self._device())
            self._workloads.put(key, found)
        return found

    def _data_for(
        self, source: str, task: str, parameters: Mapping[str, Scalar], *, private: bool
    ) -> SiteData:
        found_task = load_task(task)
        key = (source, schema_of(found_task, parameters), private)
        data = self._data.get(key)
        if data is None:
            load = self._load_privately if private else self._load
            data = load(source, found_task, parameters)
            self._data.put(key, data)
        return data

    def _load(self, source: str, task: Task, parameters: Mapping[str, Scalar]) -> SiteData:
        """Read a source; without differential privacy a record that does not fit is an error."""
        data = self._source(source).load(task, parameters)
        by_unit, unit = data.train.unit is not None, self._settings.sources[source].unit
        _check_unit(source, by_unit=by_unit, unit=unit)
        return data

    def _load_privately(
        self, source: str, task: Task, parameters: Mapping[str, Scalar]
    ) -> SiteData:
        """Read a source; a record that does not fit counts as null, here and in the log alone."""
        self.check_form(source, task.name, parameters)
        by_unit = self._settings.sources[source].unit != "row"
        found = self._source(source).load_privately(task, parameters, by_unit=by_unit)
        for fault in found.faults:
            log.warning("data '%s' counts as null: %s", source, fault.sentence)
        return found.data

    def _source(self, name: str) -> Source:
        if name not in self._sources:
            if name not in self._settings.sources:
                raise DataError(f"the site's configuration has no data '{name}'")
            asked = self._settings.sources[name]
            self._sources[name] = open_source(name, asked.options, asked.lineage)
        return self._sources[name]

    def _notice_change(self, name: str) -> Stamp | None:
        """Forget what was read of a source that has changed since, and say so in the log."""
        source = self._source(name)
        stamp = source.stamp()
        seen, known = self._versions.get(name, (None, None))
        if known is not None and stamp is not None and stamp == seen:
            return stamp
        found = source.version()
        if found != known:
            log.info("%s", compare(name, known, found, source.starts_with).sentence)
            self._forget(name)
        self._versions[name] = (stamp, found)
        return stamp

    def _forget(self, source: str) -> None:
        """Let go of what was read of a source."""
        self._versions.pop(source, None)
        self._data.drop(source)
        self._workloads.drop(source)

    def _device(self) -> str:
        """Return the worker's device, torch made ready; what reads no data needs no torch."""
        device = self._settings.device
        if not self._ready:
            import torch

            torch.set_num_threads(self._settings.threads)
            index = int(device.partition(":")[2] or 0)
            if device != "cpu" and index >= torch.cuda.device_count():
                raise EnvironmentFailedError(f"worker.devices: torch sees no {device} here")
            self._ready = True
        return device


def _check_unit(source: str, *, by_unit: bool, unit: str) -> None:
    """Noise is for one unit: accounted per unit and sampled per row, it would hide no unit."""
    read = "in units" if by_unit else "row by row"
    if by_unit != (unit != "row"):
        raise DataError(
            f"data '{source}' is read {read}, and policy.yaml says unit: {unit}; give the source"
            " a unit column in agent.yaml, or correct data.unit in policy.yaml"
        )


def _run(job: Job, workload: Workload, folder: Path) -> Outcome:
    base, out = Path(job.base), folder / UPDATE
    if job.training is None:
        if job.measurement is None:
            return workload.evaluate(base=base)
        return workload.evaluate_privately(base=base, measurement=job.measurement)
    if job.mechanism is not None:
        return workload.train_privately(
            base=base, out=out, training=job.training, mechanism=job.mechanism
        )
    seed = derive_seed(job.seed, job.site, job.round, job.kind)
    return workload.train(base=base, out=out, training=job.training, seed=seed)


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
