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
        """Return a certificate for a request, carrying exactly `role` and `name`.

        What the request itself says of names is ignored. `hosts` are DNS names or IP addresses.

        Raises:
            IdentityError: the request does not prove possession of its key.
        """
        request = x509.load_pem_x509_csr(request_pem)
        if not request.is_signature_valid:
            raise IdentityError("the certificate request is not signed by its own key")
        now = datetime.now(UTC)
        uri = x509.UniformResourceIdentifier(Peer(role=role, name=name).uri)
        names: list[x509.GeneralName] = [uri, *(_host(host) for host in hosts)]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _CLOCK_SKEW)
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([_USAGE[role]]), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
