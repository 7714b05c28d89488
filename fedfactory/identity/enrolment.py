"""A daemon's key and certificate in a folder of its own: the key is made here and stays (law 8).

`request.json` beside the key says whose it is and what is to be certified; who asks for that,
and how, is told in wire/enrolling.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedfactory.contracts.codec import decode, to_json
from fedfactory.contracts.errors import IdentityError, ProtocolError
from fedfactory.durable_file import write_durably
from fedfactory.identity.chains import read_certificates, root_of
from fedfactory.identity.facts import public_key_text
from fedfactory.identity.roles import Peer, Role

REQUEST: Final = "request.json"
TLS_KEY: Final = "tls.key"
# Of the key of a Flower node, which older requests name, too, and nothing needs any more.
_FORMER_FIELD: Final = "node_public_key"
CERTIFICATE: Final = "certificate.pem"
AUTHORITY: Final = "authority.pem"
_PEM: Final = serialization.Encoding.PEM


class ClockBehindError(IdentityError):
    """A certificate's time has not begun by this machine's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a daemon asks to be certified: who it says it is, and its request (PEM)."""

    role: str
    name: str
    csr: str

    @property
    def csr_pem(self) -> bytes:
        """The certificate signing request."""
        return self.csr.encode()

    @property
    def public_key(self) -> str:
        """The public key that asks to be certified (PEM), for policies to pin."""
        return public_key_text(x509.load_pem_x509_csr(self.csr_pem).public_key())


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a daemon shows and checks with (PEM): key, certificate with its chain, trusted roots."""

    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes


def request_identity(folder: Path, role: Role, name: str) -> None:
    """Make a key and a request in `folder`, unless they are there already.

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
    request = Request(role=role.value, name=name, csr=request_text(key, name))
    write_durably(folder / REQUEST, to_json(request))


def read_request(folder: Path) -> Request:
    """Return the request left in `folder`. Raises ProtocolError if it is damaged."""
    try:
        written = json.loads((folder / REQUEST).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"{folder / REQUEST}: not JSON", diagnostic=str(error)) from error
    if isinstance(written, dict):
        written.pop(_FORMER_FIELD, None)
    return decode(Request, written)


def request_text(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """Return a certificate signing request (PEM), signed by `key` to prove its possession."""
    name_of_key = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name_of_key)
    return builder.sign(key, hashes.SHA256()).public_bytes(_PEM).decode()


def install_certificate(folder: Path, certificate_pem: bytes, authority_pem: bytes) -> None:
    """Put certificate chain and trusted roots beside the key; the certificate last.

    So at every moment the roots cover the certificate that is there.
    """
    write_durably(folder / AUTHORITY, authority_pem)
    write_durably(folder / CERTIFICATE, certificate_pem)


def is_enrolled(folder: Path) -> bool:
    """Whether `folder` holds a certificate; whether it holds true is `load_identity`'s."""
    return (folder / CERTIFICATE).exists()


def load_identity(folder: Path) -> Identity:
    """Return key, certificate chain and trusted roots, once they are seen to belong together.

    Raises:
        IdentityError: a file is missing or unreadable, the certificate is for another key, leads
            to no root of the bundle, or it or one that it rests on is not valid now.
    """
    try:
        identity = Identity(
            key_pem=(folder / TLS_KEY).read_bytes(),
            certificate_pem=(folder / CERTIFICATE).read_bytes(),
            authority_pem=(folder / AUTHORITY).read_bytes(),
        )
    except OSError as error:
        raise IdentityError(f"{folder} holds no whole identity", diagnostic=str(error)) from error
    check_identity(identity, str(folder / CERTIFICATE))
    return identity


def check_identity(identity: Identity, where: str) -> None:
    """Check that an identity's parts belong together and are valid now; `where` names it.

    Raises:
        IdentityError: they are unreadable, the certificate is for another key, leads to no root of
            the bundle, or it or one that it rests on is not valid now.
    """
    try:
        key = serialization.load_pem_private_key(identity.key_pem, password=None)
        chain = read_certificates(identity.certificate_pem)
        roots = read_certificates(identity.authority_pem)
        certified = chain[0].public_key()  # read only now: it may be damaged by itself
    except (ValueError, TypeError, UnsupportedAlgorithm, IdentityError) as error:
        raise IdentityError(f"{where}: this is no whole identity", diagnostic=str(error)) from error
    now = datetime.now(UTC)
    if certified != key.public_key():
        raise IdentityError(f"{where} is for another key than {TLS_KEY}: enrol anew")
    if (begin := chain[0].not_valid_before_utc) > now:
        raise ClockBehindError(
            f"{where} is valid from {begin:%Y-%m-%d %H:%M} UTC on, and this machine's clock says"
            f" {now:%Y-%m-%d %H:%M}: set the clock"
        )
    if (end := chain[0].not_valid_after_utc) < now:
        raise IdentityError(
            f"{where} ended on {end:%Y-%m-%d %H:%M} UTC: ask the consortium for a new invitation"
        )
    try:
        root_of(chain, roots, now)
    except IdentityError as error:
        raise IdentityError(f"{where}: {error.public_message}") from error


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
