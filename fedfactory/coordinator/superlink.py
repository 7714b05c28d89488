"""Flower's SuperLink and SuperExec as our children, on loopback, with TLS made for this start.

The loopback authority and keys live and die with the coordinator. SuperLink keeps its state in
memory: the runs' journals are the truth. Both die with us (tethered.py).
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.coordinator.flower_seam import (
    SuperLinkClient,
    flower_environment,
    superexec_arguments,
    superlink_arguments,
)
from fedfactory.coordinator.leftovers import MARK, end_leftovers, is_stopped, living_children
from fedfactory.coordinator.supervision import FROZEN_S, Restarts

log = logging.getLogger("fedfactory.coordinator")

START_TIMEOUT_S: Final = 60.0
PULSE_S: Final = 1.0
START_PULSE_S: Final = 0.02
_PEM: Final = serialization.Encoding.PEM
_LIFETIME: Final = timedelta(days=3650)


class SuperLink:
    """Both programs under supervision: what dies or freezes is killed and started again.

    `epoch` counts the starts of SuperExec, `generation` those of SuperLink: what an earlier one
    knew is gone. `tick` is one thread's; `forward` may be called from any.
    """

    def __init__(self, home: Path, logs: Path) -> None:
        self.generation = 0
        self.epoch = 0
        self._tls = home / "loopback"
        self._tls.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_loopback_tls(self._tls)
        self._secret = self._tls / "superexec-secret"
        _write_private(self._secret, secrets.token_hex(32).encode())
        self._home = home
        self._logs = logs
        self._environment = _child_environment(home)
        self._link: subprocess.Popen[bytes] | None = None
        self._exec: subprocess.Popen[bytes] | None = None
        self._link_restarts = self._exec_restarts = Restarts()
        self._link_due = self._exec_due = 0.0
        self._port = 0
        self._client: SuperLinkClient | None = None
        self._answered_at: float | None = None
        self._lock = threading.Lock()  # a client and its answers change together
        self._stop = threading.Event()
        self._pulse = threading.Thread(target=self._feel, name="pulse", daemon=True)
        self._pulse.start()

    @property
    def client(self) -> SuperLinkClient | None:
        """How the coordinator talks to the SuperLink that answers now; None if none does."""
        return self._client if self._answered_at is not None else None

    @property
    def starts_apps(self) -> bool:
        """Whether both are up; ServerApps end with either, and none is started meanwhile."""
        return self._exec is not None

    @property
    def is_starter_stopped(self) -> bool:
        """Whether SuperExec was stopped (SIGSTOP): it lives, and starts nothing."""
        return self._exec is not None and is_stopped(self._exec.pid)

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        children = {"superlink": self._link, "superexec": self._exec}
        return {name: child.pid for name, child in children.items() if child is not None}

    def forward(
        self, method: str, public_key: bytes, timestamp: str, signature: bytes, body: bytes
    ) -> tuple[int, bytes]:
        """Post one Fleet call to the SuperLink of now; 503 if there is none."""
        client = self._client
        if client is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, b""
        return client.forward(method, public_key, timestamp, signature, body)

    def tick(self, now: float) -> None:
        """Look after both, once; `now` is time.monotonic()."""
        if (answered := self._answered_at) is not None:
            self._link_restarts = self._link_restarts.alive(answered)
        if self._link is not None and (found := self._link_fault(self._link, now)):
            self._link_restarts = self._link_restarts.died(now)
            self._link_due = now + self._link_restarts.pause_s
            log.warning(
                "Flower's SuperLink %s; starting another in %.1f s (see %s)",
                found,
                self._link_restarts.pause_s,
                self._logs / "superlink.log",
            )
            self._end_link()
        if self._link is None and now >= self._link_due:
            self._start_link(now)
        if self._exec is not None and (code := self._exec.poll()) is not None:
            self._exec_restarts = self._exec_restarts.died(now)
            self._exec_due = now + self._exec_restarts.pause_s
            log.warning("Flower's SuperExec ended with code %s; starting another", code)
            self._exec = None
        if self._link is not None and self._exec is None and now >= self._exec_due:
            self._start_exec(now)

    def server_apps(self) -> frozenset[int]:
        """Return the process ids of the ServerApps that SuperExec started and that live."""
        return frozenset() if self._exec is None else living_children(self._exec.pid)

    def replace(self) -> None:
        """End SuperLink; `tick` starts another. Any thread."""
        link = self._link
        if link is not None:
            link.kill()

    def kill_superexec(self) -> None:
        """End SuperExec, which has not started what it was given; `tick` starts another."""
        if self._exec is not None:
            _kill(self._exec)

    def stop(self) -> None:
        """End both. SuperLink holds nothing worth a graceful wait of half a minute."""
        self._stop.set()
        self._end_link()
        self._pulse.join()

    # ---- within ----------------------------------------------------------------------------

    def _link_fault(self, link: subprocess.Popen[bytes], now: float) -> str | None:
        if (code := link.poll()) is not None:
            return f"ended with code {code}"
        answered = self._answered_at
        if answered is None and now - self._link_restarts.began_at > START_TIMEOUT_S:
            return f"did not answer within {START_TIMEOUT_S:.0f} s of its start"
        if answered is not None and now - answered > FROZEN_S:
            return f"has not answered for {FROZEN_S:.0f} s"
        return None

    def _start_link(self, now: float) -> None:
        # A port that another takes before SuperLink does ends it: the next start probes again.
        self._port = _free_port()
        arguments = superlink_arguments(port=self._port, tls=self._tls, secret=self._secret)
        self._link = _start(arguments, self._environment, self._logs / "superlink.log")
        self._link_restarts = self._link_restarts.began(now)
        self.generation += 1
        self._client = SuperLinkClient(port=self._port, authority=self._tls / "ca.pem")
        self._exec_restarts, self._exec_due = Restarts(), now

    def _start_exec(self, now: float) -> None:
        # ServerApps of an earlier one end by themselves, unless they are frozen.
        end_leftovers(self._home, spare=() if self._link is None else (self._link.pid,))
        arguments = superexec_arguments(
            port=self._port, tls=self._tls, secret=self._secret, parent_pid=os.getpid()
        )
        log_file = self._logs / "serverapp.log"
        self._exec = _start(arguments, self._environment, log_file, after=self._port)
        self._exec_restarts = self._exec_restarts.began(now)
        self.epoch += 1

    def _end_link(self) -> None:
        for child in (self._exec, self._link):
            if child is not None:
                _kill(child)
        self._link = self._exec = None
        with self._lock:
            client, self._client, self._answered_at = self._client, None, None
        if client is not None:
            client.close()

    def _feel(self) -> None:
        """Ask SuperLink again and again whether it answers."""
        while not self._stop.wait(START_PULSE_S if self._answered_at is None else PULSE_S):
            client = self._client
            if client is None or not client.is_ready():
                continue
            with self._lock:
                if client is self._client:
                    self._answered_at = time.monotonic()


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    child.wait()


def _start(
    arguments: list[str], environment: dict[str, str], log: Path, *, after: int = 0
) -> subprocess.Popen[bytes]:
    """Start one of Flower's programs, `after` that port is listened on (0: at once)."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                *("-m", "fedfactory.coordinator.tethered", str(os.getpid()), str(after)),
                *arguments,
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _child_environment(home: Path) -> dict[str, str]:
    # Flower's programs talk to loopback alone: a proxy could only break them.
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    scripts = str(Path(sys.executable).parent)
    path = f"{scripts}{os.pathsep}{kept.get('PATH', os.defpath)}"
    own = {"PATH": path, "OMP_NUM_THREADS": "1", MARK: str(home)}
    return {**kept, **flower_environment(home / "flower"), **own}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _write_loopback_tls(folder: Path) -> None:
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fedfactory loopback")])
    authority_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())

    def certificate(key: ec.EllipticCurvePrivateKey, subject: x509.Name) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + _LIFETIME)
        )

    authority = (
        certificate(authority_key, name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server = (
        certificate(server_key, x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(authority.public_bytes(_PEM))
    (folder / "superlink.pem").write_bytes(server.public_bytes(_PEM))
    _write_private(
        folder / "superlink.key",
        server_key.private_bytes(
            _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
