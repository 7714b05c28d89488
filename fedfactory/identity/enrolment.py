"""A daemon's keys and certificate in a folder of its own: keys are made here and stay here (law 8).

A daemon without an identity leaves `request.json` and waits for `certificate.pem` beside it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import IdentityError
from fedfactory.identity.roles import Role

REQUEST: Final = "request.json"
_TLS_KEY: Final = "tls.key"
_NODE_KEY: Final = "node.key"
_CERTIFICATE: Final = "certificate.pem"
_AUTHORITY: Final = "authority.pem"
_PEM: Final = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a daemon asks to be certified: who it says it is, and its public keys (PEM)."""

    role: str
    name: str
    csr: str
    node_public_key: str | None

    @property
    def csr_pem(self) -> bytes:
        """The certificate signing request."""
        return self.csr.encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a daemon shows and checks with: its key and certificate, its authority (PEM)."""

    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes


def request_identity(folder: Path, role: Role, name: str, *, node_key: bool = False) -> None:
    """Make keys and a request in `folder`, unless they are there already.

    `node_key` adds the Flower node key (EC P-384) that a site's messages are signed with.
    """
    if (folder / REQUEST).exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    _write(folder / _TLS_KEY, _private_pem(key))
    public = None
    if node_key:
        node = ec.generate_private_key(ec.SECP384R1())
        _write(folder / _NODE_KEY, _private_pem(node))
        public = node.public_key().public_bytes(
            _PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .sign(key, hashes.SHA256())
    )
    request = Request(
        role=role.value,
        name=name,
        csr=csr.public_bytes(_PEM).decode(),
        node_public_key=public.decode() if public else None,
    )
    _write(folder / REQUEST, to_json(request).encode())


def read_request(folder: Path) -> Request:
    """Return the request left in `folder`."""
    return from_json(Request, (folder / REQUEST).read_bytes())


def install_certificate(folder: Path, certificate_pem: bytes, authority_pem: bytes) -> None:
    """Put certificate and authority beside the request; the certificate last: it ends the wait."""
    _write(folder / _AUTHORITY, authority_pem)
    _write(folder / _CERTIFICATE, certificate_pem)


def wait_for_certificate(folder: Path, timeout_s: float) -> None:
    """Wait for the certificate.

    Raises:
        IdentityError: it did not come in time; says where it is awaited.
    """
    end = time.monotonic() + timeout_s
    pause_s = 0.01
    while not (folder / _CERTIFICATE).exists():
        if time.monotonic() > end:
            raise IdentityError(
                f"no certificate came for {folder / REQUEST} within {timeout_s:.0f} s:"
                " have it signed by the consortium's authority"
            )
        time.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.1)


def load_identity(folder: Path) -> Identity:
    """Return key, certificate and authority."""
    return Identity(
        key_pem=(folder / _TLS_KEY).read_bytes(),
        certificate_pem=(folder / _CERTIFICATE).read_bytes(),
        authority_pem=(folder / _AUTHORITY).read_bytes(),
    )


def load_node_key(folder: Path) -> bytes:
    """Return the Flower node key (private, PEM)."""
    return (folder / _NODE_KEY).read_bytes()


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.touch(mode=0o600)
    partial.write_bytes(content)
    partial.replace(path)
