"""The local executor: a warm worker for each device, beside the agent.

One job at a time per device. A job that is no training takes a free device, else a worker on the
CPU that is started when first needed: an evaluation never waits for a training to end. A worker
that dies while it is idle is started again: the next order finds it warm.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.codec import decode, encode
from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError
from fedfactory.contracts.orders import Scalar
from fedfactory.isolation.mechanism import Network
from fedfactory.tasks.rehearsal import Passes
from site_agents.executors.devices import absent_devices, find_devices
from site_agents.executors.executor import (
    JobTimeoutError,
    NeverBegunError,
    NoDataError,
    UnfitWorkError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.executors.revival import Revival
from site_agents.executors.warm_worker import WarmWorker
from site_agents.jobs.job import JOB, RESULT, Job, JobResult, JobTrial, read_result, write_file
from site_agents.jobs.settings import SourceFacts, SourceOptions, WorkerSettings

log = logging.getLogger("site_agents.executors")

DESCRIBE_TIMEOUT_S: Final = 600.0
REHEARSAL_TIMEOUT_S: Final = 600.0
CLOSE_TIMEOUT_S: Final = 5.0
LOOK_EVERY_S: Final = 1.0
Sources = Callable[[], Mapping[str, SourceOptions]]


class LocalExecutor:
    """Workers on this machine. `sources` says what data there is now, whenever a job begins.

    A worker whose site has since changed its sources is started anew before the next job.
    """

    def __init__(
        self,
        *,
        site: str,
        sources: Sources,
        threads: int,
        devices: Sequence[str],
        log: Path,
        network: Network | None = None,
    ) -> None:
        self._site = site
        self._sources = sources
        self._threads = threads
        self._asked = tuple(devices)
        self._log = log
        self._network = network
        self._changed = threading.Condition()
        self._workers: list[WarmWorker] | None = None  # by device; None until they are known
        self._aside: WarmWorker | None = None
        self._lent: list[WarmWorker] = []
        self._stops = 0
        self._drains = 0
        self._is_started = False
        self._no_device = ""  # why there is none, where agent.yaml names only absent ones
        self._closed = False

    def start(self) -> None:
        """See Executor: finds the devices and warms the first one's worker."""
        with self._changed:
            if self._is_started:
                return
            self._is_started = True
        threading.Thread(target=self._prepare, name="devices", daemon=True).start()

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers there are."""
        with self._changed:
            return [worker.pid for worker in self._all() if worker.pid is not None]

    def describe(
        self, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> SourceFacts:
        """See Executor."""
        return SourceFacts(**self._ask_of_source("facts", source, task, task_parameters))

    def check_form(self, source: str, task: str, task_parameters: Mapping[str, Scalar]) -> None:
        """See Executor."""
        self._ask_of_source("form", source, task, task_parameters)

    def _ask_of_source(
        self, ask: str, source: str, task: str, task_parameters: Mapping[str, Scalar]
    ) -> Any:
        request = {
            "ask": ask,
            "source": source,
            "task": task,
            "parameters": dict(task_parameters),
        }
        answer = self._ask(request, DESCRIBE_TIMEOUT_S, needs_device=False)
        if "failure" in answer:
            raise NoDataError(
                f"data source '{source}' cannot be read for task '{task}': see {self._log}"
            )
        return answer[ask]

    def rehearse(self, trial: JobTrial) -> Passes:
        """See Executor."""
        is_training = trial.rehearsal.kind == "train"
        request = {"rehearse": encode(trial)}
        answer = self._ask(
            request, REHEARSAL_TIMEOUT_S, needs_device=is_training, begin_by=trial.begin_by
        )
        if "failure" in answer:
            raise UnfitWorkError(answer["failure"], f"{answer['finding']}; see {self._log}")
        return decode(Passes, answer["passes"])

    def run(self, job: Job, folder: Path, timeout_s: float) -> JobResult:
        """See Executor."""
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / RESULT).unlink(missing_ok=True)
            write_file(folder / JOB, job)
        except OSError as error:
            raise NeverBegunError(f"{folder} cannot be written: {error.strerror}") from error
        is_training = job.kind == "train"
        self._ask({"job": str(folder)}, timeout_s, needs_device=is_training, begin_by=job.begin_by)
        return read_result(folder)

    def drain(self) -> None:
        """See Executor."""
        with self._changed:
            self._drains += 1
            self._changed.notify_all()

    def stop_work(self) -> None:
        """See Executor."""
        with self._changed:
            self._stops += 1
            for worker in self._lent:
                worker.interrupt()
            self._changed.notify_all()

    def close(self) -> None:
        """See Executor."""
        with self._changed:
            self._closed = True
        self.stop_work()
        end = time.monotonic() + CLOSE_TIMEOUT_S
        with self._changed:
            while self._lent and self._changed.wait(max(0.0, end - time.monotonic())):
                pass
            for worker in self._all():
                worker.close()

    def _ask(
        self,
        request: Mapping[str, Any],
        timeout_s: float,
        *,
        needs_device: bool,
        begin_by: float | None = None,
    ) -> dict[str, Any]:
        wait_s = timeout_s if begin_by is None else begin_by - time.time()
        end = time.monotonic() + wait_s
        with self._changed:
            stops = self._stops
        self.start()
        with self._worker(needs_device=needs_device, end=end) as worker:
            try:
                worker.wait_ready()
            except (WorkerLostError, JobTimeoutError, OSError) as error:
                raise NeverBegunError(
                    f"a worker did not get ready ({error}); see {self._log}"
                ) from error
            if self._stops != stops:
                raise NeverBegunError
            left_s = end - time.monotonic()
            if begin_by is not None and left_s <= 0.0:
                raise NeverBegunError("no worker was ready in the time in which it could begin")
            try:
                return worker.ask(request, max(0.0, left_s) if begin_by is None else timeout_s)
            except (WorkerLostError, JobTimeoutError) as error:
                if self._stops != stops:
                    raise WorkStoppedError from error
                raise

    @contextmanager
    def _worker(self, *, needs_device: bool, end: float) -> Iterator[WarmWorker]:
        """Lend a worker that nobody else uses, its data sources those of now."""
        sources = self._sources()
        worker = self._take(needs_device=needs_device, end=end)
        try:
            if worker.settings.sources != sources:
                worker.close()
                worker.settings = self._settings(worker.settings.device, sources)
            yield worker
        finally:
            with self._changed:
                self._lent.remove(worker)
                self._changed.notify_all()

    def _take(self, *, needs_device: bool, end: float) -> WarmWorker:
        with self._changed:
            asked = (self._stops, self._drains)
            while not self._closed and asked == (self._stops, self._drains):
                if self._no_device:
                    raise NeverBegunError(self._no_device)
                worker = self._free(needs_device=needs_device)
                if worker is not None:
                    self._lent.append(worker)
                    return worker
                if not self._changed.wait(max(0.0, end - time.monotonic())):
                    raise NeverBegunError("no device became free in the time the order has")
            raise NeverBegunError

    def _free(self, *, needs_device: bool) -> WarmWorker | None:
        if self._workers is None:  # the devices are still being found
            return None
        for worker in self._workers:
            if worker not in self._lent:
                return worker
        if needs_device:
            return None
        if self._aside is None:
            self._aside = self._make("cpu")
        return self._aside if self._aside not in self._lent else None

    def _prepare(self) -> None:
        devices = self._devices()
        log.info("devices: %s", ", ".join(devices) or "none")
        with self._changed:
            if not devices:
                self._no_device = f"worker.devices: torch sees no {', '.join(self._asked)} here"
                self._changed.notify_all()
                return
            self._workers = [self._make(device) for device in devices]
            if not self._closed:
                self._warm(self._workers[0])
            self._changed.notify_all()
            self._keep()

    def _devices(self) -> tuple[str, ...]:
        """Return the devices to work on; those that are not here are logged and left out."""
        absent: tuple[str, ...] = ()
        devices = self._asked
        try:
            devices = find_devices(self._asked)
            if devices == self._asked:  # named one by one, and not looked for
                absent = absent_devices(devices)
        except EnvironmentFailedError as error:
            if self._asked != ("auto",):
                log.error("%s", error)  # noqa: TRY400  the message is for a person
                return self._asked
            log.error("%s; using the CPU", error)  # noqa: TRY400  the message is for a person
            return ("cpu",)
        for device in absent:
            log.error("worker.devices: torch sees no %s here; no work is done on it", device)
        return tuple(device for device in devices if device not in absent)

    def _keep(self) -> None:
        """Start what dies idle again, until the end; the lock is held, save while it waits."""
        revivals: defaultdict[WarmWorker, Revival] = defaultdict(Revival)
        while not self._closed:
            now = time.monotonic()
            for worker in self._all():
                if worker in self._lent or not worker.has_died:
                    revivals[worker] = revivals[worker].lives()
                    continue
                revivals[worker] = revivals[worker].dead(worker.began_at, now)
                if revivals[worker].is_due(now):
                    log.warning("an idle worker on %s died; another starts", worker.settings.device)
                    self._warm(worker)
                    revivals[worker] = revivals[worker].lives()
            self._changed.wait(LOOK_EVERY_S)

    def _warm(self, worker: WarmWorker) -> None:
        try:
            sources = self._sources()
        except FedfactoryError:
            worker.close()
            return  # as long as the site's policy does not hold, no work comes
        worker.settings = self._settings(worker.settings.device, sources)
        try:
            worker.start()
        except OSError as error:
            log.error("a worker cannot be started: %s", error)  # noqa: TRY400  a later job tries

    def _all(self) -> list[WarmWorker]:
        return [*(self._workers or []), *([self._aside] if self._aside else [])]

    def _make(self, device: str) -> WarmWorker:
        """Return a worker that is not yet started; it gets its data sources when it is lent."""
        return WarmWorker(self._settings(device, {}), network=self._network, log=self._log)

    def _settings(self, device: str, sources: Mapping[str, SourceOptions]) -> WorkerSettings:
        return WorkerSettings(
            site=self._site, sources=sources, threads=self._threads, device=device
        )
