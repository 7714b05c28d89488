"""A daemon's keys and certificate in a folder of its own: keys are made here and stay here (law 8).

A daemon without an identity leaves `request.json` and waits for `certificate.pem` beside it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import IdentityError
from fedfactory.durable_file import write_durably
from fedfactory.identity.roles import Peer, Role

REQUEST: Final = "request.json"
TLS_KEY: Final = "tls.key"
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

    @property
    def public_key(self) -> str:
        """The public key that asks to be certified (PEM), for policies to pin."""
        key = x509.load_pem_x509_csr(self.csr_pem).public_key()
        return key.public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a daemon shows and checks with: its key and certificate, its authority (PEM)."""

    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes


def request_identity(folder: Path, role: Role, name: str, *, node_key: bool = False) -> None:
    """Make keys and a request in `folder`, unless they are there already.

    `node_key` adds the Flower node key (EC P-384) that a site's messages are signed with.

    Raises:
        IdentityError: `folder` holds the identity of somebody else, or the name cannot be one.
    """
    peer = Peer(role=role, name=name)
    if (folder / REQUEST).exists():
        found = read_request(folder)
        if (found.role, found.name) != (peer.role, peer.name):
            raise IdentityError(
                f"{folder} holds the identity of {found.role} '{found.name}', expected"
                f" {role} '{name}': use another folder, or remove it to enrol anew"
            )
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    write_durably(folder / TLS_KEY, _private_pem(key))
    public = None
    if node_key:
        node = ec.generate_private_key(ec.SECP384R1())
        write_durably(folder / _NODE_KEY, _private_pem(node))
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
    write_durably(folder / REQUEST, to_json(request))


def read_request(folder: Path) -> Request:
    """Return the request left in `folder`."""
    return from_json(Request, (folder / REQUEST).read_bytes())


def install_certificate(folder: Path, certificate_pem: bytes, authority_pem: bytes) -> None:
    """Put certificate and authority beside the request; the certificate last: it ends the wait."""
    write_durably(folder / _AUTHORITY, authority_pem)
    write_durably(folder / _CERTIFICATE, certificate_pem)


def wait_for_certificate(folder: Path, timeout_s: float, stop: threading.Event) -> bool:
    """Wait for the certificate; False if `stop` was set before it came.

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
        if stop.wait(pause_s):
            return False
        pause_s = min(1.0, pause_s * 1.1)
    return True


def load_identity(folder: Path) -> Identity:
    """Return key, certificate and authority, once they are seen to belong together.

    Raises:
        IdentityError: a file is missing or unreadable, the certificate is for another key, of
            another authority, or not valid now.
    """
    try:
        identity = Identity(
            key_pem=(folder / TLS_KEY).read_bytes(),
            certificate_pem=(folder / _CERTIFICATE).read_bytes(),
            authority_pem=(folder / _AUTHORITY).read_bytes(),
        )
        key = serialization.load_pem_private_key(identity.key_pem, password=None)
        certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
        authority = x509.load_pem_x509_certificate(identity.authority_pem)
    except (OSError, ValueError, TypeError) as error:
        raise IdentityError(f"{folder} holds no whole identity", diagnostic=str(error)) from error
    where = folder / _CERTIFICATE
    if certificate.public_key() != key.public_key():
        raise IdentityError(f"{where} is for another key than {TLS_KEY}: enrol anew")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise IdentityError(f"{where} is not signed by {_AUTHORITY}") from error
    if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
        raise IdentityError(
            f"{where} is valid from {certificate.not_valid_before_utc} to"
            f" {certificate.not_valid_after_utc}, not now: have a new one signed"
        )
    return identity


def load_node_key(folder: Path) -> bytes:
    """Return the Flower node key (private, PKCS #8 PEM, as Flower's client loads it)."""
    try:
        return (folder / _NODE_KEY).read_bytes()
    except OSError as error:
        raise IdentityError(f"{folder} holds no node key", diagnostic=str(error)) from error


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
