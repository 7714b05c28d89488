"""The coordinator on its host: gateway, SuperLink and one run, supervised together.

HOME holds what it is told (`run.json`, `roster/<site>.json` as sites are admitted) and what it
tells (`gateway.json`: the address sites connect to; `pids.json`). It ends when asked (SIGTERM), or
when its standard input closes if `--until-stdin-closes` is given, so that a launcher that dies
leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError
from fedfactory.coordinator.blobs import BlobStore
from fedfactory.coordinator.gateway import Gateway
from fedfactory.coordinator.link import LinkServer
from fedfactory.coordinator.run_files import SUMMARY
from fedfactory.coordinator.settings import Admission, RunSettings
from fedfactory.coordinator.superlink import SuperLink
from fedfactory.durable_file import write_in_one_piece
from fedfactory.identity.enrolment import load_identity, request_identity, wait_for_certificate
from fedfactory.identity.roles import Role
from fedfactory.wire.arenas import limit_arenas

log = logging.getLogger("fedfactory.coordinator")

CERTIFICATE_TIMEOUT_S: Final = 60.0
FILE_TIMEOUT_S: Final = 120.0
HEADER_ROOM_BYTES: Final = 64 * 1024
STOP_GRACE_S: Final = 20.0


class Coordinator:
    """One coordinator: starts its parts in order, watches them, stops them in reverse."""

    def __init__(self, home: Path, *, name: str, host: str) -> None:
        self._home = home
        self._name = name
        self._host = host
        self._stop = threading.Event()
        self._stop_reason = ""

    def request_stop(self, reason: str) -> None:
        """Ask the run to stop; safe from a signal handler."""
        self._stop_reason = reason
        self._stop.set()

    def run(self) -> int:
        """Serve until the run is over and a stop is asked for; return the exit code."""
        identity = self._home / "identity"
        request_identity(identity, Role.COORDINATOR, self._name)
        superlink = SuperLink(self._home, self._home / "logs")
        try:
            if not wait_for_certificate(identity, CERTIFICATE_TIMEOUT_S, self._stop):
                return 0
            store = BlobStore(self._home / "blobs")
            gateway = Gateway(load_identity(identity), store, superlink.client.forward)
            port = gateway.start(self._host)
            try:
                self._announce(port, superlink)
                return self._serve(gateway, superlink)
            finally:
                gateway.stop()
        finally:
            superlink.stop()

    def _announce(self, port: int, superlink: SuperLink) -> None:
        told = {"address": f"{self._host}:{port}", "pids": superlink.pids}
        write_in_one_piece(self._home / "gateway.json", json.dumps(told))

    def _serve(self, gateway: Gateway, superlink: SuperLink) -> int:
        superlink.wait_ready()
        path = self._home / "run.json"
        if not self._wait_for(path):
            return 0
        settings = RunSettings.read(path)
        gateway.limit_uploads(settings.initial.bytes + HEADER_ROOM_BYTES)
        with LinkServer(self._home / "link.sock", gateway, self._home / "staging") as link:
            for site in settings.plan.sites:
                self._admit(site, gateway, superlink)
            superlink.client.start_run(self._home / "link.sock", path)
            log.info("run %s handed to Flower", settings.plan.run_id)
            return self._watch(Path(settings.run_folder) / SUMMARY, link, superlink)

    def _admit(self, site: str, gateway: Gateway, superlink: SuperLink) -> None:
        path = self._home / "roster" / f"{site}.json"
        if self._wait_for(path):
            key = Admission.read(path).node_public_key.encode()
            gateway.admit(site, superlink.client.register_node(key, site), key)

    def _wait_for(self, path: Path) -> bool:
        """Wait for a file; False if a stop was asked for meanwhile."""
        end = time.monotonic() + FILE_TIMEOUT_S
        while not path.exists():
            if time.monotonic() > end:
                raise EnvironmentFailedError(f"{path} did not come in {FILE_TIMEOUT_S:.0f} s")
            if self._stop.wait(0.02):
                return False
        return True

    def _watch(self, summary: Path, link: LinkServer, superlink: SuperLink) -> int:
        told = False
        give_up = float("inf")
        while not summary.exists():
            if not told and self._stop.is_set():
                told = True
                give_up = time.monotonic() + STOP_GRACE_S
                link.stop(self._stop_reason)
            if (dead := superlink.dead()) and not told:
                told = True
                give_up = time.monotonic() + STOP_GRACE_S
                link.fail(dead)
            if (link.ended and not summary.exists()) or time.monotonic() > give_up:
                raise EnvironmentFailedError("the ServerApp ended before the run did")
            time.sleep(0.05)
        self._stop.wait()
        return 0


def main(arguments: Sequence[str]) -> int:
    """Run the coordinator; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedfactory.coordinator", description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--name", required=True, help="the coordinator's name in the consortium")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--until-stdin-closes", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    (options.home / "logs").mkdir(parents=True, exist_ok=True)
    limit_arenas()
    coordinator = Coordinator(options.home, name=options.name, host=options.host)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: coordinator.request_stop("stopped by the operator"))
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        return coordinator.run()
    except FedfactoryError as error:
        log.error("%s %s", error.public_message, error.diagnostic or "")  # noqa: TRY400
        return error.exit_code


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
