"""The coordinator on its host: gateway, Flower's engine and the runs, under one roof.

HOME is what `fedfactory consortium init` made. Everything that must survive lies there; whatever is
killed here, this process too, is started again and goes on from it. `gateway.json` tells the
address that is listened on and who runs.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Final

from fedfactory.contracts.errors import FedfactoryError, UsageError
from fedfactory.coordinator.attendance import Attendance
from fedfactory.coordinator.coordinator_config import COORDINATOR_FILE, CoordinatorConfig
from fedfactory.coordinator.desk.desk import Desk
from fedfactory.coordinator.flower_seam import flower_environment, import_engine
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.gateway import Gateway
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.coordinator.membership.consortium import (
    IDENTITY,
    coordinator_identity,
    open_consortium,
)
from fedfactory.coordinator.membership.registrar import Registrar
from fedfactory.coordinator.run_process import RunProcess
from fedfactory.coordinator.runs import Run, Runs
from fedfactory.coordinator.schedule import Schedule
from fedfactory.durable_file import write_in_one_piece
from fedfactory.identity.enrolment import TLS_KEY, Identity
from fedfactory.identity.signing import Signer
from fedfactory.lease import Lease
from fedfactory.systemd_notify import notify
from fedfactory.wire.arenas import limit_arenas

log = logging.getLogger("fedfactory.coordinator")

TICK_S: Final = 0.5  # what hurries wakes us
RENEW_EVERY_S: Final = 60.0
GATEWAY_FILE: Final = "gateway.json"


class Coordinator:
    """One coordinator: starts its parts in order, looks after them, stops them in reverse."""

    def __init__(self, config: CoordinatorConfig) -> None:
        self._config = config
        self._home = config.home
        self._consortium = open_consortium(self._home)
        if self._consortium.name != config.name:
            raise UsageError(
                f"{self._home / COORDINATOR_FILE}: name={config.name}, and the consortium founded"
                f" there is '{self._consortium.name}': its name cannot change"
            )
        self._wake = threading.Event()
        self._stopping = False
        self._lifetime = timedelta(days=config.certificate_days)
        self._identity = coordinator_identity(self._consortium, self._lifetime)
        self._renewed_at = time.monotonic()
        self._issuer_stamp: tuple[int, int] | None = None
        self._swept = False
        self._told_pids: dict[str, int] = {}
        self._registry = self._consortium.registry()

    def request_stop(self) -> None:
        """Ask for the end; safe from a signal handler."""
        self._stopping = True
        self._wake.set()

    def run(self) -> int:
        """Serve until a stop is asked for; return the exit code."""
        (self._home / GATEWAY_FILE).unlink(missing_ok=True)
        os.environ.update(flower_environment(self._home / "flower"))
        # What every run needs of Flower takes seconds to import: meanwhile its process starts.
        threading.Thread(target=import_engine, name="engine", daemon=True).start()
        registry = self._registry
        runs = Runs(self._home / "runs")
        registrar = Registrar(self._consortium, registry, self._consortium.issuer(), self._lifetime)
        schedule = Schedule(runs, self._config.runs_at_once, self._open_run)
        desk = Desk(
            self._config,
            runs,
            schedule,
            registry=registry,
            registrar=registrar,
            signer=Signer((self._home / IDENTITY / TLS_KEY).read_bytes()),
            wake=self._wake,
        )
        self._gateway = Gateway(
            identity=self._current_identity,
            store=BlobStore(self._home / "blobs"),
            standing=registry.standing,
            revocations=registry.operator_revocations,
            desk=desk,
            registrar=registrar,
            limits=GatewayLimits(max_model_bytes=self._config.max_model_bytes),
        )
        desk.gateway = self._gateway
        self._gateway.subscribe(Attendance(registry.seen))
        port = self._gateway.start(self._config.host, self._config.port)
        try:
            address = f"{self._config.host}:{port}"
            desk.address = address if self._config.port == 0 else None
            log.info("listening on %s", address)
            notify("READY=1")
            self._look_after(runs, schedule, address)
        finally:
            notify("STOPPING=1")
            (self._home / GATEWAY_FILE).unlink(missing_ok=True)
            schedule.close()
            self._gateway.stop()
        return 0

    def _look_after(self, runs: Runs, schedule: Schedule, address: str) -> None:
        while not self._stopping:
            self._wake.clear()
            now = time.monotonic()
            schedule.tick(now)
            self._sweep(runs)
            self._announce(address, schedule.pids())
            self._renew(now)
            self._wake.wait(TICK_S)

    def _sweep(self, runs: Runs) -> None:
        """Drop what runs of an earlier coordinator's time left in the store, once none needs it."""
        if not self._swept and all(run.ended for run in runs.all()):
            self._swept = True
            self._gateway.store.sweep()

    def _announce(self, address: str, runs: dict[str, int]) -> None:
        pids = {"coordinator": os.getpid(), **{f"run {run}": pid for run, pid in runs.items()}}
        if pids != self._told_pids:
            told = {"address": address, "pids": pids}
            try:
                write_in_one_piece(self._home / GATEWAY_FILE, json.dumps(told))
            except OSError as error:  # a full disk is no reason to leave every run alone
                log.error("%s cannot be written: %s", GATEWAY_FILE, error)  # noqa: TRY400
            else:
                self._told_pids = pids

    def _open_run(self, run: Run) -> RunProcess:
        revoked = {m.name for m in self._registry.members() if m.status == "revoked"}
        home = self._home / "flower"
        process = RunProcess(run, self._gateway, flower_home=home, wake=self._wake.set)
        for site in sorted(revoked.intersection(run.sites)):
            process.left(site, "revoked")
        return process

    def _current_identity(self) -> Identity:
        return self._identity

    def _renew(self, now: float) -> None:
        """Renew our own certificate when it is time, or at once when the issuer changed.

        A member that renews after a rotation shows the new root's certificate from then on.
        """
        stamp = self._consortium.issuer_stamp()
        if stamp != self._issuer_stamp or now - self._renewed_at >= RENEW_EVERY_S:
            self._renewed_at, self._issuer_stamp = now, stamp
            try:
                self._identity = coordinator_identity(self._consortium, self._lifetime)
            except (OSError, FedfactoryError) as error:
                log.error("our certificate could not be renewed: %s", error)  # noqa: TRY400


def run_coordinator(config: CoordinatorConfig, *, until_stdin_closes: bool = False) -> int:
    """Run the coordinator of a home until SIGTERM or SIGINT; return the exit code.

    Its runs go on when it is started again.

    Raises:
        EnvironmentFailedError: another one runs on this home, or the address is taken.
        IdentityError: the home holds no identity that is good now.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    limit_arenas()
    with Lease(config.home, "coordinator", "run"):
        coordinator = Coordinator(config)

        def stop(number: int, frame: FrameType | None) -> None:
            del number, frame
            coordinator.request_stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        if until_stdin_closes:
            threading.Thread(target=_end_with_stdin, daemon=True).start()
        code = coordinator.run()
        log.info("stopped")
    return code


def _end_with_stdin() -> None:
    # Not sys.stdin: a thread that waits in it, when the process ends first, upsets the interpreter.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def leave(code: int) -> None:
    """End the process: threads parked in open calls must neither delay nor abort the exit."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
