"""Flower's SuperLink and SuperExec as our children, on loopback, with TLS made for this start.

The loopback authority and keys live and die with the coordinator. SuperLink keeps its state in
memory: the run's events are the truth.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.coordinator.flower_seam import (
    SuperLinkClient,
    flower_environment,
    superexec_arguments,
    superlink_arguments,
)

START_TIMEOUT_S: Final = 60.0
_PEM: Final = serialization.Encoding.PEM
_LIFETIME: Final = timedelta(days=30)


class SuperLink:
    """Both programs under supervision. `client` is how the coordinator talks to them."""

    def __init__(self, home: Path, logs: Path) -> None:
        tls = home / "loopback"
        tls.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_loopback_tls(tls)
        secret = tls / "superexec-secret"
        _write_private(secret, secrets.token_hex(32).encode())
        self._logs = logs
        self._port = _free_port()
        environment = _child_environment(home / "flower")
        link = superlink_arguments(port=self._port, tls=tls, secret=secret)
        execs = superexec_arguments(port=self._port, tls=tls, secret=secret, parent_pid=os.getpid())
        self._children = {
            "superlink": _start(link, environment, logs / "superlink.log"),
            "superexec": _start(execs, environment, logs / "serverapp.log"),
        }
        self.client = SuperLinkClient(port=self._port, authority=tls / "ca.pem")

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.pid for name, child in self._children.items()}

    def wait_ready(self) -> None:
        """Wait until SuperLink answers.

        Raises:
            EnvironmentFailedError: it ended, or did not answer in time; names its log.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while not self.client.is_ready():
            if dead := self.dead():
                raise EnvironmentFailedError(f"{dead} at start; see {self._logs}")
            if time.monotonic() > end:
                raise EnvironmentFailedError(
                    f"SuperLink did not answer within {START_TIMEOUT_S:.0f} s; see {self._logs}"
                )
            time.sleep(0.05)

    def dead(self) -> str | None:
        """Return a sentence naming the first child that ended, or None."""
        for name, child in self._children.items():
            if (code := child.poll()) is not None:
                return f"Flower's {name} ended with code {code}"
        return None

    def stop(self) -> None:
        """End both. SuperLink holds nothing worth a graceful wait of half a minute."""
        self.client.close()
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()


def _start(arguments: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                *("-m", "fedfactory.coordinator.tethered", str(os.getpid())),
                *arguments,
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _child_environment(flower_home: Path) -> dict[str, str]:
    # Flower's programs talk to loopback alone: a proxy could only break them.
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    scripts = str(Path(sys.executable).parent)
    path = f"{scripts}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, **flower_environment(flower_home), "PATH": path, "OMP_NUM_THREADS": "1"}


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
