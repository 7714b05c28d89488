"""Builds the consortium's X.509 certificates: roots, the issuer under them, and members' leaves.

root (P-384, 10 years, path length 2) -> issuer (P-384, 2 years, 0) -> leaf (P-256 or P-384, days).
At a rotation the old root also certifies the new root's key (path length 2, as a root's own), so
that whoever trusts either root verifies: leaf -> issuer -> new root's key -> old root. RFC 5280,
sections 4.2 and 6.1; whether a new root is trusted is for succession.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfactory.contracts.errors import IdentityError
from fedfactory.identity.roles import Peer, Role

ROOT_LIFETIME: Final = timedelta(days=3652)
ISSUER_LIFETIME: Final = timedelta(days=730)
ROOT_PATH_LENGTH: Final = 2
CROSS_PATH_LENGTH: Final = 2
ISSUER_PATH_LENGTH: Final = 0
_CLOCK_SKEW: Final = timedelta(minutes=5)
_PEM: Final = serialization.Encoding.PEM
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_USAGE: Final = {
    Role.COORDINATOR: ExtendedKeyUsageOID.SERVER_AUTH,
    Role.SITE: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.OPERATOR: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.VIEWER: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.INVITED: ExtendedKeyUsageOID.CLIENT_AUTH,
}


def new_authority_key() -> ec.EllipticCurvePrivateKey:
    """Return a new key for a root or an issuer (P-384)."""
    return ec.generate_private_key(ec.SECP384R1())


def build_root(key: ec.EllipticCurvePrivateKey, consortium: str) -> x509.Certificate:
    """Return a root's own certificate."""
    # A name of its own for each root: two roots of one name would be one in a chain's search.
    name = _authority_name(consortium, "root", key.public_key())
    return _build_authority(
        name, key.public_key(), name, key, ROOT_LIFETIME, path_length=ROOT_PATH_LENGTH
    )


def build_cross(
    new_root: x509.Certificate, old_root: x509.Certificate, old_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    """Return a certificate of the new root's key by the old root."""
    return _build_authority(
        new_root.subject,
        _ec_key(new_root),
        old_root.subject,
        old_key,
        old_root.not_valid_after_utc - datetime.now(UTC),
        path_length=CROSS_PATH_LENGTH,
    )


def build_issuer(
    public_key: ec.EllipticCurvePublicKey,
    consortium: str,
    root: x509.Certificate,
    root_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """Return an issuer's certificate by a root; it never outlives the root."""
    lifetime = min(ISSUER_LIFETIME, root.not_valid_after_utc - datetime.now(UTC))
    name = _authority_name(consortium, "issuer", public_key)
    return _build_authority(
        name, public_key, root.subject, root_key, lifetime, path_length=ISSUER_PATH_LENGTH
    )


def build_leaf(
    public_key: ec.EllipticCurvePublicKey,
    peer: Peer,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    lifetime: timedelta,
    *,
    hosts: Sequence[str] = (),
) -> x509.Certificate:
    """Return a member's certificate: one role, one name, one usage; it never outlives its issuer.

    `hosts` are DNS names or IP addresses that a coordinator answers at.

    Raises:
        IdentityError: hosts for a role that serves nobody, or one that is no host's name.
    """
    if hosts and peer.role is not Role.COORDINATOR:
        raise IdentityError(f"a {peer.role} serves nobody: its certificate cannot name hosts")
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(peer.uri), *map(_host, hosts)]
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer.name)]))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(min(now + lifetime, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGE[peer.role]]), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_key_id_of(issuer), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a certificate request that proves its possession.

    Raises:
        IdentityError: no request, not signed by its own key, or a key on another curve than P-256
            and P-384.
    """
    try:
        request = x509.load_pem_x509_csr(request_pem)
        is_proven = request.is_signature_valid
        key = request.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError("this is no certificate request (PEM)") from error
    if not is_proven:
        raise IdentityError("the certificate request is not signed by its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise IdentityError("the request's key must be on the curve P-256 or P-384")
    return key


def pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return certificates as one PEM text."""
    return b"".join(certificate.public_bytes(_PEM) for certificate in certificates)


def _authority_name(consortium: str, kind: str, public_key: ec.EllipticCurvePublicKey) -> x509.Name:
    mark = x509.SubjectKeyIdentifier.from_public_key(public_key).digest.hex()[:8]
    text = f"{consortium[:40]} {kind} {mark}"
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _build_authority(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    lifetime: timedelta,
    *,
    path_length: int,
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    if subject != issuer:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
    return builder.sign(key, hashes.SHA384())


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    # Strict verifiers (Python 3.13's among them) refuse a key that does not say what it is for.
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id_of(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(_ec_key(issuer))


def _ec_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("an authority's key must be on a NIST curve")
    return key


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise IdentityError(f"'{host}' is no host's name or address") from error
