"""`fedfactory local`: the whole consortium on this machine, as the daemons a real one runs.

Starts coordinator and agents as processes on free ports, with a certificate authority of this run's
own, in a temporary workspace; submits and follows the run as any operator does; cleans up whatever
happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
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
from fedfactory.coordinator.membership.founding import make_consortium
from fedfactory.identity.operators import Operator, load_operator
from fedfactory.identity.roles import Role
from fedfactory.local.plan import (
    CONSORTIUM,
    OPERATOR,
    SOURCE,
    baselines_request,
    check_shares,
    coordinator_settings,
    data_options,
    site_policy,
)
from fedfactory.local.processes import Children
from fedfactory.operator.client import OperatorClient
from fedfactory.operator.following import Follower
from fedfactory.operator.run_folder import EVENTS, MODEL, SUMMARY, read_line, write_summary
from fedfactory.operator.starting import made_model, make_initial_model
from fedfactory.operator.submission import submission_of
from fedfactory.report.reporter import Reporter, make_reporter
from fedfactory.rounds.events import Finish, RunFailed
from fedfactory.rounds.history import History, append
from fedfactory.rounds.summary import summary
from fedfactory.wire.arrays import file_ref
from site_agents.data.local_share import Share
from site_agents.setup import make_home

START_TIMEOUT_S: Final = 120.0
TICK_S: Final = 0.05
INVITATION_S: Final = 3600.0
EXIT_OF_STATUS: Final[Mapping[str, int]] = {
    "completed": 0,
    "failed": RunFailedError.exit_code,
    "stopped": RunStoppedError.exit_code,
}


def run_local(config: RunConfig) -> int:
    """Run one federation on this machine; return the exit code.

    Raises:
        DataError: the data is missing, unreadable or too small, before anything starts.
        EnvironmentFailedError: a process did not start or died; its log is named.
    """
    shares = check_shares(config)
    run_id = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex()
    folder = (config.out or Path("runs") / run_id).resolve()
    _make_run_folder(folder, config.composed_yaml)
    workspace = Path(tempfile.mkdtemp(prefix="fedfactory-"))
    reporter = make_reporter(sys.stdout, sites_note=_sites_note(config))
    with _interruptible() as interrupted:
        try:
            result = _LocalRun(
                config=config,
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
    """What a consortium's people do, done by one program: found, invite, enrol, submit, follow."""

    def __init__(
        self,
        *,
        config: RunConfig,
        shares: Mapping[str, Share],
        run_id: str,
        folder: Path,
        workspace: Path,
        reporter: Reporter,
        interrupted: list[int],
    ) -> None:
        self._config = config
        self._shares = shares
        self._run_id = run_id
        self._folder = folder
        self._workspace = workspace
        self._home = workspace / "coordinator"
        self._initial_file = workspace / "initial.safetensors"
        self._sites = {site: workspace / site for site in config.sites}
        self._reporter = reporter
        self._interrupted = interrupted
        self._children = Children(environment=_environment())

    def run(self) -> dict[str, Any]:
        try:
            self._reporter.stage("starting the coordinator, making the initial model")
            operator = self._found()
            job = make_initial_model(self._config, self._initial_file)
            with OperatorClient(operator, self._gateway_address()) as client:
                self._reporter.stage("starting the sites' agents")
                self._start_agents(client)
                result = self._submit_and_follow(client, made_model(job))
        finally:
            self._children.stop()
        if self._config.baselines and result["status"] == "completed":
            result["baselines"] = self._baselines()
            write_summary(self._folder, result)
        self._reporter.finish(result, str(self._folder))
        return result

    # ---- start-up --------------------------------------------------------------------------

    def _found(self) -> Operator:
        """Make an authority for this run alone, and start its coordinator."""
        make_consortium(
            self._home,
            name=CONSORTIUM,
            root_key=self._workspace / "root.key",
            passphrase=secrets.token_bytes(32),
            hosts=("localhost", "127.0.0.1"),
            gateway="127.0.0.1:0",
            operator=OPERATOR,
            operator_folder=self._workspace / "operator",
        )
        self._children.start(
            "coordinator",
            [
                *(sys.executable, "-m", "fedfactory.cli.main", "coordinator"),
                *("--home", str(self._home), "--until-stdin-closes"),
                *coordinator_settings(self._config),
            ],
            self._home / "logs" / "coordinator.log",
        )
        return load_operator(self._workspace / "operator")

    def _gateway_address(self) -> str:
        path = self._home / "gateway.json"
        self._wait_until(path.exists, "the gateway")
        return str(json.loads(path.read_text())["address"])

    def _start_agents(self, client: OperatorClient) -> None:
        """Invite every site and start its agent, which enrols; wait until all are connected."""
        for site, home in self._sites.items():
            invitation = client.invite(Role.SITE, site, INVITATION_S)
            policy = site_policy(self._config, self._shares.get(site), invitation)
            make_home(
                home,
                site=site,
                gateway_address=invitation.gateway,
                data={SOURCE: data_options(self._config, site)},
                policy_text=policy,
                worker={"executor": self._config.executor_name},
                invitation=invitation,
            )
            self._children.start(
                site,
                [
                    *(sys.executable, "-m", "site_agents.cli.main", "run"),
                    *("--home", str(home), "--until-stdin-closes"),
                ],
                home / "logs" / "agent.log",
            )
        self._reporter.stage("waiting for the sites")
        self._wait_until(lambda: self._are_connected(client), "the sites' agents")

    def _are_connected(self, client: OperatorClient) -> bool:
        here = {member.name for member in client.members().members if member.connected}
        return here.issuperset(self._sites)

    def _wait_until(self, there: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while not there():
            self._check_children()
            self._reporter.tick()
            if self._interrupted:
                raise RunStoppedError("interrupted before the run began")
            if time.monotonic() > end:
                raise EnvironmentFailedError(f"waited {START_TIMEOUT_S:.0f} s for {what} in vain")
            time.sleep(TICK_S)

    def _check_children(self) -> None:
        if dead := self._children.dead():
            raise EnvironmentFailedError(
                f"{dead.name} ended with code {dead.process.returncode};"
                f" see {self._folder / 'logs' / dead.name}"
            )

    # ---- the run ---------------------------------------------------------------------------

    def _submit_and_follow(self, client: OperatorClient, initial: BlobRef) -> dict[str, Any]:
        client.upload(self._initial_file, initial)
        submission = submission_of(
            self._config,
            coordinator=client.operator.consortium,
            run_id=self._run_id,
            signer=client.operator.signer,
            initial=initial,
            central=self._public_set(client),
            now=time.time(),
        )
        submitted = client.submit(submission)
        if submitted.run_id is None:
            said = [f"{found.site}: {found.sentence}" for found in submitted.findings]
            raise RefusedError("; ".join([submitted.reason, *said]))
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
                    return self._broken(dead.process.returncode)
            assert follower.summary is not None
            return follower.summary
        finally:
            follower.close()

    def _broken(self, code: int) -> dict[str, Any]:
        """Say what the events show, now that the run's keeper is gone."""
        reason = f"the coordinator ended with code {code}"
        tail = (read_line(text).event for text in (self._folder / EVENTS).read_text().splitlines())
        history = History.new()
        for event in (*tail, RunFailed(at=time.time(), reason=reason)):
            history = append(history, event)
        if history.finished_model is None:
            raise EnvironmentFailedError(
                f"{reason} before the run began; see {self._folder / 'logs'}"
            )
        end = Finish(status="failed", reason=reason, model=history.finished_model)
        result = summary(history, end, traffic={}, model_file=None)
        write_summary(self._folder, result)
        return result

    def _baselines(self) -> Any:
        self._reporter.stage("measuring what each site alone, and pooled data, would have reached")
        source = self._home / "baselines.json"
        out = self._home / "baselines-result.json"
        source.write_text(to_json(baselines_request(self._config, self._folder / MODEL)))
        child = self._children.start(
            "baselines",
            [
                *(sys.executable, "-m", "fedfactory.local.baselines"),
                *("--config", str(source), "--out", str(out)),
            ],
            self._home / "logs" / "baselines.log",
        )
        while child.process.poll() is None and not self._interrupted:
            self._reporter.tick()
            time.sleep(TICK_S)
        self._children.stop()
        return json.loads(out.read_text()) if out.exists() else None


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


def _environment() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}


def _sites_note(config: RunConfig) -> str:
    return f"simulated here, named after {', '.join(config.sites)}"


def _keep_logs(workspace: Path, folder: Path) -> None:
    for logs in workspace.glob("*/logs"):
        shutil.copytree(logs, folder / "logs" / logs.parent.name, dirs_exist_ok=True)
