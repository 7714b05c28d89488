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
from fedfactory.identity.enrolment import load_identity, request_identity, wait_for_certificate
from fedfactory.identity.roles import Role

log = logging.getLogger("fedfactory.coordinator")

CERTIFICATE_TIMEOUT_S: Final = 60.0
ADMISSION_TIMEOUT_S: Final = 120.0
STOP_GRACE_S: Final = 20.0


class Coordinator:
    """One coordinator: starts its parts in order, watches them, stops them in reverse."""

    def __init__(self, home: Path, host: str) -> None:
        self._home = home
        self._host = host
        self._settings_path = home / "run.json"
        self._settings = RunSettings.read(self._settings_path)
        self._stop = threading.Event()
        self._stop_reason = ""

    def request_stop(self, reason: str) -> None:
        """Ask the run to stop; safe from a signal handler."""
        self._stop_reason = reason
        self._stop.set()

    def run(self) -> int:
        """Serve until the run is over and a stop is asked for; return the exit code."""
        identity_folder = self._home / "identity"
        request_identity(identity_folder, Role.COORDINATOR, self._settings.coordinator)
        superlink = SuperLink(self._home, self._home / "logs")
        try:
            wait_for_certificate(identity_folder, CERTIFICATE_TIMEOUT_S)
            gateway = Gateway(
                load_identity(identity_folder),
                BlobStore(self._home / "blobs"),
                superlink.client.forward,
                max_upload_bytes=self._settings.initial.bytes + 64 * 1024,
            )
            port = gateway.start(self._host)
            try:
                self._announce(port, superlink)
                return self._serve(gateway, superlink)
            finally:
                gateway.stop()
        finally:
            superlink.stop()

    def _announce(self, port: int, superlink: SuperLink) -> None:
        partial = self._home / ".gateway.json.part"
        partial.write_text(json.dumps({"address": f"{self._host}:{port}", "pids": superlink.pids}))
        partial.replace(self._home / "gateway.json")

    def _serve(self, gateway: Gateway, superlink: SuperLink) -> int:
        superlink.wait_ready()
        self._admit_sites(gateway, superlink)
        with LinkServer(self._home / "link.sock", gateway, self._home / "staging") as link:
            superlink.client.start_run(self._home / "link.sock", self._settings_path)
            log.info("run %s handed to Flower", self._settings.plan.run_id)
            return self._watch(link, superlink)

    def _admit_sites(self, gateway: Gateway, superlink: SuperLink) -> None:
        waiting = set(self._settings.plan.sites)
        end = time.monotonic() + ADMISSION_TIMEOUT_S
        while waiting and not self._stop.is_set():
            for site in sorted(waiting):
                path = self._home / "roster" / f"{site}.json"
                if path.exists():
                    admission = Admission.read(path)
                    key = admission.node_public_key.encode()
                    gateway.admit(site, superlink.client.register_node(key, site), key)
                    waiting.discard(site)
            if time.monotonic() > end:
                raise EnvironmentFailedError(
                    f"sites not admitted in {ADMISSION_TIMEOUT_S:.0f} s: {', '.join(sorted(waiting))}"
                )
            time.sleep(0.02)

    def _watch(self, link: LinkServer, superlink: SuperLink) -> int:
        summary = Path(self._settings.run_folder) / SUMMARY
        told = False
        give_up = float("inf")
        while not summary.exists():
            if not told and self._stop.is_set():
                told = True
                give_up = time.monotonic() + STOP_GRACE_S
                link.stop(self._stop_reason)
            if dead := superlink.dead():
                link.fail(dead)
                raise EnvironmentFailedError(dead)
            if link.ended or time.monotonic() > give_up:
                raise EnvironmentFailedError("the ServerApp ended before the run did")
            time.sleep(0.05)
        self._stop.wait()
        return 0


def main(arguments: Sequence[str]) -> int:
    """Run the coordinator; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedfactory.coordinator", description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--until-stdin-closes", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    (options.home / "logs").mkdir(parents=True, exist_ok=True)
    coordinator = Coordinator(options.home, options.host)
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
