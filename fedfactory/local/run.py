"""`fedfactory local`: the whole consortium on this machine, as the daemons a real one runs.

Starts coordinator and agents as processes with an ephemeral certificate authority on free ports, in
a temporary workspace; follows the run through its folder; cleans up whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, Final

from fedfactory.config import RunConfig
from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    RunFailedError,
    RunStoppedError,
    UsageError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import SignedPlan
from fedfactory.coordinator.run_files import EVENTS, MODEL, SUMMARY, write_summary
from fedfactory.coordinator.settings import Admission
from fedfactory.identity.authority import Authority
from fedfactory.identity.enrolment import install_certificate, read_request
from fedfactory.identity.roles import Role
from fedfactory.identity.signing import Signer, fingerprint, new_signing_key
from fedfactory.local.plan import (
    COORDINATOR,
    INITIAL,
    SOURCE,
    baselines_request,
    check_choices,
    data_options,
    run_settings,
    run_terms,
    site_policy,
)
from fedfactory.local.processes import Children
from fedfactory.report.follow import EventTail
from fedfactory.report.reporter import Reporter, make_reporter
from fedfactory.rounds.events import Finish, RunFailed
from fedfactory.rounds.history import History, append
from fedfactory.rounds.summary import summary
from site_agents.data.local_share import Share
from site_agents.setup import make_home

START_TIMEOUT_S: Final = 120.0
TICK_S: Final = 0.05
CERTIFICATE_LIFETIME: Final = timedelta(days=2)
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
    shares = check_choices(config)
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
        # Local mode's operator is whoever started it: a key for this run, in this process alone.
        self._operator = Signer(new_signing_key())
        self._run_id = run_id
        self._folder = folder
        self._home = workspace / "coordinator"
        self._initial_file = self._home / INITIAL
        self._sites = {site: workspace / site for site in config.sites}
        self._reporter = reporter
        self._interrupted = interrupted
        self._children = Children(environment=_environment())
        self._history = History.new()
        self._authority = Authority.create_ephemeral()

    def run(self) -> dict[str, Any]:
        try:
            self._reporter.stage("starting the coordinator, making the initial model")
            self._home.mkdir(parents=True)
            self._start_coordinator()
            job = self._start_initial_model()
            self._enrol(self._home / "identity", Role.COORDINATOR)
            self._reporter.stage("starting the sites' agents")
            self._start_agents(self._gateway_address())
            self._hand_over(job)
            self._admit_sites()
            result = self._follow()
        finally:
            self._children.stop()
        if self._config.baselines and result["status"] == "completed":
            result["baselines"] = self._baselines()
        write_summary(self._folder, result)
        self._reporter.finish(result, str(self._folder))
        return result

    # ---- start-up --------------------------------------------------------------------------

    def _start_coordinator(self) -> None:
        self._children.start(
            "coordinator",
            [
                *(sys.executable, "-m", "fedfactory.coordinator", str(self._home)),
                *("--name", COORDINATOR, "--until-stdin-closes"),
            ],
            self._home / "logs" / "coordinator.log",
        )

    def _start_initial_model(self) -> subprocess.Popen[bytes]:
        """Start the job that makes the initial model: it imports torch while all else starts."""
        parameters = json.dumps(dict(self._config.task_parameters))
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "fedfactory.tasks.model_jobs", "init"),
                *("--task", self._config.task_name, "--parameters", parameters),
                *("--seed", str(self._config.seed), "--out", str(self._initial_file)),
            ],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def _hand_over(self, job: subprocess.Popen[bytes]) -> None:
        """Give the coordinator its run once the initial model is made."""
        output, errors = job.communicate()
        if job.returncode != 0:
            raise EnvironmentFailedError(
                "the initial model could not be made", diagnostic=errors.decode(errors="replace")
            )
        initial = from_json(BlobRef, output)
        terms = run_terms(
            self._config,
            run_id=self._run_id,
            initial=initial,
            nonce=secrets.token_hex(16),
            now=time.time(),
        )
        signed = SignedPlan(terms=terms, signature=self._operator.sign(terms))
        run_settings(
            self._config, signed=signed, home=self._home, folder=self._folder, initial=initial
        ).write(self._home / "run.json")

    def _gateway_address(self) -> str:
        path = self._home / "gateway.json"
        self._wait_for(path, "the gateway")
        return str(json.loads(path.read_text())["address"])

    def _start_agents(self, address: str) -> None:
        coordinator = fingerprint(read_request(self._home / "identity").public_key)
        operator = fingerprint(self._operator.public_key)
        for site, home in self._sites.items():
            policy = site_policy(
                self._config, self._shares.get(site), coordinator=coordinator, operator=operator
            )
            make_home(
                home,
                site=site,
                gateway_address=address,
                data={SOURCE: data_options(self._config, site)},
                policy_text=policy,
                worker={"executor": self._config.executor_name},
            )
            self._children.start(
                site,
                [
                    *(sys.executable, "-m", "site_agents.cli.main", "run"),
                    *("--home", str(home), "--until-stdin-closes"),
                ],
                home / "logs" / "agent.log",
            )

    def _admit_sites(self) -> None:
        for site, home in self._sites.items():
            request = self._enrol(home / "identity", Role.SITE)
            assert request.node_public_key is not None
            Admission(site=site, node_public_key=request.node_public_key).write(
                self._home / "roster"
            )

    def _enrol(self, identity: Path, role: Role) -> Any:
        """Sign the request that a daemon left in its folder; its key never leaves it."""
        self._wait_for(identity / "request.json", f"{identity.parent.name}'s certificate request")
        request = read_request(identity)
        names = ("localhost", "127.0.0.1") if role is Role.COORDINATOR else ()
        certificate = self._authority.sign(
            request.csr_pem, role, request.name, CERTIFICATE_LIFETIME, hosts=names
        )
        install_certificate(identity, certificate, self._authority.certificate_pem)
        return request

    def _wait_for(self, path: Path, what: str) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while not path.exists():
            self._check_children()
            self._reporter.tick()
            if self._interrupted:
                raise RunStoppedError("interrupted before the run began")
            if time.monotonic() > end:
                raise EnvironmentFailedError(f"waited {START_TIMEOUT_S:.0f} s for {what} in vain")
            time.sleep(0.01)

    def _check_children(self) -> None:
        if dead := self._children.dead():
            raise EnvironmentFailedError(
                f"{dead.name} ended with code {dead.process.returncode};"
                f" see {self._folder / 'logs' / dead.name}"
            )

    # ---- the run ---------------------------------------------------------------------------

    def _follow(self) -> dict[str, Any]:
        self._reporter.stage("waiting for the sites")
        tail = EventTail(self._folder / EVENTS)
        done = self._folder / SUMMARY
        asked_to_stop = False
        while not done.exists():
            self._drain(tail)
            self._reporter.tick()
            if self._interrupted and not asked_to_stop:
                asked_to_stop = True
                self._reporter.stage("stopping")
                os.kill(self._children.pids()["coordinator"], signal.SIGTERM)
            dead = self._children.dead()
            if dead is not None and dead.name == "coordinator" and not done.exists():
                self._drain(tail)
                return self._broken(f"the coordinator ended with code {dead.process.returncode}")
            time.sleep(TICK_S)
        self._drain(tail)
        result: dict[str, Any] = json.loads(done.read_text())
        return result

    def _drain(self, tail: EventTail) -> None:
        for event in tail.read():
            self._history = append(self._history, event)
            self._reporter.event(event)

    def _broken(self, reason: str) -> dict[str, Any]:
        """The writer of the run folder is gone: say what its events show."""
        event = RunFailed(at=time.time(), reason=reason)
        self._history = append(self._history, event)
        self._reporter.event(event)
        if self._history.finished_model is None:
            raise EnvironmentFailedError(
                f"{reason} before the run began; see {self._folder / 'logs'}"
            )
        end = Finish(status="failed", reason=reason, model=self._history.finished_model)
        return summary(self._history, end, traffic={}, model_file=None)

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
