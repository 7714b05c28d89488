"""The consortium's certificate authority. It signs requests; it never sees a private key."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfactory.contracts.errors import IdentityError
from fedfactory.identity.roles import Peer, Role

_CLOCK_SKEW = timedelta(minutes=5)
_USAGE = {
    Role.COORDINATOR: ExtendedKeyUsageOID.SERVER_AUTH,
    Role.SITE: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.OPERATOR: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.VIEWER: ExtendedKeyUsageOID.CLIENT_AUTH,
}
_CURVES = (ec.SECP256R1, ec.SECP384R1)
# Strict verifiers (Python 3.13's among them) refuse an authority that does not say what it is for.
_AUTHORITY_KEY_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """An EC P-256 authority whose key lives in this process."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create_ephemeral(cls, lifetime: timedelta = timedelta(days=30)) -> Self:
        """Make an authority that ends with this process."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedfactory authority")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_AUTHORITY_KEY_USAGE, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @property
    def certificate_pem(self) -> bytes:
        """The authority's own certificate, for peers to pin."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign(
        self,
        request_pem: bytes,
        role: Role,
        name: str,
        lifetime: timedelta,
        *,
        hosts: Sequence[str] = (),
    ) -> bytes:
        """Return a certificate (PEM) for a request, carrying exactly `role` and `name`.

        What the request itself says of names is ignored. `hosts` are DNS names or IP addresses that
        a coordinator answers at. The certificate never outlives the authority.

        Raises:
            IdentityError: no request, a key that is not on a NIST curve, no proof of possession of
                its private key, a bad name, or hosts for a role that serves nobody.
        """
        public_key = _requested_key(request_pem)
        if hosts and role is not Role.COORDINATOR:
            raise IdentityError(f"a {role} serves nobody: its certificate cannot name hosts")
        now = datetime.now(UTC)
        uri = x509.UniformResourceIdentifier(Peer(role=role, name=name).uri)
        names: list[x509.GeneralName] = [uri, *(_host(host) for host in hosts)]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(min(now + lifetime, self._certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_USAGE[role]]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _requested_key(request_pem: bytes) -> ec.EllipticCurvePublicKey:
    try:
        request = x509.load_pem_x509_csr(request_pem)
    except ValueError as error:
        raise IdentityError("this is no certificate request (PEM)") from error
    if not request.is_signature_valid:
        raise IdentityError("the certificate request is not signed by its own key")
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise IdentityError("the request's key must be on the curve P-256 or P-384")
    return key
