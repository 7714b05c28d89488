"""`fedfactory local`: the whole consortium on this machine, as the daemons a real one runs.

Starts coordinator and agents as processes on free ports, with a certificate authority of this run's
own, in a temporary workspace; submits and follows the run as any operator does; cleans up whatever
happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fedfactory.config import RunConfig
from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    RefusedError,
    RunFailedError,
    RunStoppedError,
    UsageError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.running.run_log import LAST_GASP, RUN_LOG
from fedfactory.isolation.launching import isolated
from fedfactory.local.consortium import TICK_S, LocalConsortium
from fedfactory.local.plan import baselines_request, check_shares
from fedfactory.operator.client import OperatorClient
from fedfactory.operator.following import Follower
from fedfactory.operator.run_folder import EVENTS, MODEL, SUMMARY, read_line, write_summary
from fedfactory.operator.starting import made_model, make_initial_model
from fedfactory.operator.submission import run_plan
from fedfactory.operator.telling import finding_lines, submitted_lines
from fedfactory.report.reporter import Form, Reporter, make_reporter
from fedfactory.report.terminal import lasting
from fedfactory.rounds.events import Finish, RunFailed
from fedfactory.rounds.history import History, append
from fedfactory.rounds.summary import summary
from fedfactory.wire.arrays import file_ref
from site_agents.data.local_share import Share

EXIT_OF_STATUS: Final[Mapping[str, int]] = {
    "completed": 0,
    "failed": RunFailedError.exit_code,
    "stopped": RunStoppedError.exit_code,
}


def run_local(config: RunConfig, form: Form) -> int:
    """Run one federation on this machine, shown in a form; return the exit code.

    Raises:
        DataError: the data is missing, unreadable or too small, before anything starts.
        EnvironmentFailedError: a process did not start or died; its log is named.
    """
    shares = check_shares(config)
    run_id = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex()
    folder = (config.out or Path("runs") / run_id).resolve()
    _make_run_folder(folder, config.composed_yaml)
    workspace = Path(tempfile.mkdtemp(prefix="fedfactory-"))
    reporter = make_reporter(lasting(sys.stdout), form=form, sites_note=_sites_note(config))
    with _interruptible() as interrupted:
        try:
            result = _LocalRun(
                config=config,
                form=form,
                shares=shares,
                run_id=run_id,
                folder=folder,
                workspace=workspace,
                reporter=reporter,
                interrupted=interrupted,
            ).run()
        finally:
            reporter.close()
            _keep_logs(workspace, folder)
            shutil.rmtree(workspace, ignore_errors=True)
    return (
        130 if interrupted and result["status"] == "stopped" else EXIT_OF_STATUS[result["status"]]
    )


def _make_run_folder(folder: Path, composed_yaml: str) -> None:
    if (folder / SUMMARY).exists() or (folder / EVENTS).exists():
        raise UsageError(f"out={folder} already holds a run; name another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(composed_yaml)
    except OSError as error:
        raise UsageError(f"out={folder} cannot be written ({error.strerror})") from error


class _LocalRun:
    """What an operator does: make a model, submit the run, follow it, measure what it is worth."""

    def __init__(
        self,
        *,
        config: RunConfig,
        form: Form,
        shares: Mapping[str, Share],
        run_id: str,
        folder: Path,
        workspace: Path,
        reporter: Reporter,
        interrupted: list[int],
    ) -> None:
        self._config = config
        self._form = form
        self._run_id = run_id
        self._folder = folder
        self._initial_file = workspace / "initial.safetensors"
        self._reporter = reporter
        self._interrupted = interrupted
        self._consortium = LocalConsortium(
            config,
            shares,
            workspace,
            logs=folder / "logs",
            reporter=reporter,
            interrupted=interrupted,
        )
        self._children = self._consortium.children

    def run(self) -> dict[str, Any]:
        try:
            self._reporter.stage("starting the coordinator, making the initial model")
            job = make_initial_model(self._config, self._initial_file)  # beside all the rest
            operator = self._consortium.found()
            with OperatorClient(operator, self._consortium.gateway_address()) as client:
                self._consortium.start_agents(client)
                result = self._submit_and_follow(client, made_model(job))
        finally:
            self._children.stop()
        if self._config.baselines and result["status"] == "completed":
            result["baselines"] = self._baselines()
            write_summary(self._folder, result)
        self._reporter.finish(result, str(self._folder))
        return result

    def _submit_and_follow(self, client: OperatorClient, initial: BlobRef) -> dict[str, Any]:
        client.upload(self._initial_file, initial)
        plan = run_plan(
            self._config,
            coordinator=client.operator.consortium,
            run_id=self._run_id,
            signer=client.operator.signer,
            initial=initial,
            central=self._public_set(client),
            now=time.time(),
        )
        submitted = client.submit(plan)
        if self._form != "words":  # to a person the run's first event says its name
            for line in submitted_lines(submitted, self._form):
                print(line, file=lasting(sys.stdout), flush=True)
        if submitted.run_id is None:
            raise RefusedError("; ".join([submitted.reason, *finding_lines(submitted.findings)]))
        return self._follow(client)

    def _public_set(self, client: OperatorClient) -> BlobRef | None:
        """Upload the public data set that the coordinator measures on, if there is one."""
        if self._config.central is None:
            return None
        ref = file_ref(self._config.central)
        client.upload(self._config.central, ref)
        return ref

    def _follow(self, client: OperatorClient) -> dict[str, Any]:
        follower = Follower(client, self._run_id, self._folder)
        try:
            asked_to_stop = False
            for event in follower.events(tick_s=TICK_S):
                if event is not None:
                    self._reporter.event(event)
                self._reporter.tick()
                if self._interrupted and not asked_to_stop:
                    asked_to_stop = True
                    self._reporter.stage("stopping")
                    follower.ask_to_stop("now")
                dead = self._children.dead()
                if dead is not None and dead.name == "coordinator":
                    reason = f"the coordinator ended with code {dead.process.returncode}"
                    return end_broken(self._folder, reason, time.time())
                if event is None and follower.status == "suspended":  # nobody can resume it here
                    return end_broken(self._folder, self._suspended(client), time.time())
            assert follower.summary is not None
            if asked_to_stop and follower.summary["status"] == "stopped":
                return stopped_by_signal(self._folder, follower.summary, self._interrupted[0])
            return follower.summary
        finally:
            follower.close()

    def _suspended(self, client: OperatorClient) -> str:
        rows = [row for row in client.runs() if row.run_id == self._run_id]
        said, _, _ = rows[0].reason.partition("; ")  # the rest is of a coordinator that stays
        return f"{said}; see {self._folder / 'logs'}"

    def _baselines(self) -> Any:
        self._reporter.stage("measuring what each site alone, and pooled data, would have reached")
        home = self._consortium.home
        source, out = home / "baselines.json", home / "baselines-result.json"
        source.write_text(to_json(baselines_request(self._config, self._folder / MODEL)))
        child = self._children.start(
            "baselines",
            [
                *(*isolated(None, gpu=False), "fedfactory.local.baselines"),
                *("--config", str(source), "--out", str(out)),
            ],
            home / "logs" / "baselines.log",
        )
        while child.process.poll() is None and not self._interrupted:
            self._reporter.tick()
            time.sleep(TICK_S)
        self._children.stop()
        return json.loads(out.read_text()) if out.exists() else None


def stopped_by_signal(folder: Path, told: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Write and return a stopped run's summary with the signal that stopped it as its reason.

    To the coordinator it is a wish of the operator's, whose name says nothing to a person here.
    """
    name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
    result = {**told, "reason": f"stopped by {name}"}
    write_summary(folder, result)
    return result


def end_broken(folder: Path, reason: str, at: float) -> dict[str, Any]:
    """Write and return the summary of a run whose keeper is gone, by the events in its folder.

    Raises:
        EnvironmentFailedError: the run had not begun.
    """
    history = History.new()
    for line in (folder / EVENTS).read_text().splitlines():
        history = append(history, read_line(line).event)
    if history.plan is None:
        raise EnvironmentFailedError(f"{reason} before the run began; see {folder / 'logs'}")
    history = append(history, RunFailed(at=at, reason=reason))
    assert history.finished_model is not None
    end = Finish(status="failed", reason=reason, model=history.finished_model)
    result = summary(history, end, traffic={}, model_file=None)
    write_summary(folder, result)
    return result


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list; a second one raises KeyboardInterrupt."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _sites_note(config: RunConfig) -> str:
    return f"simulated here, named after {', '.join(config.sites)}"


def _keep_logs(workspace: Path, folder: Path) -> None:
    for logs in workspace.glob("*/logs"):
        shutil.copytree(logs, folder / "logs" / logs.parent.name, dirs_exist_ok=True)
    for pattern in (f"{RUN_LOG}*", LAST_GASP):
        for log in workspace.glob(f"*/runs/*/{pattern}"):
            (folder / "logs" / "run").mkdir(parents=True, exist_ok=True)
            shutil.copy(log, folder / "logs" / "run")
