"""What a coordinator checks of a certificate beyond its signature: serial, end and key."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedfactory.contracts.errors import IdentityError


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """One certificate's serial number (hex), its end (Unix seconds) and its public key (PEM)."""

    serial: str
    not_after: float
    public_key: str


def facts_of(certificate_pem: bytes) -> CertificateFacts:
    """Return the facts of the first certificate in a PEM chain.

    Raises:
        IdentityError: it is no certificate.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError as error:
        raise IdentityError("this is no certificate (PEM)") from error
    return CertificateFacts(
        serial=serial_text(certificate.serial_number),
        not_after=certificate.not_valid_after_utc.timestamp(),
        public_key=public_key_text(certificate.public_key()),
    )


def serial_text(serial: int) -> str:
    """Return a serial number as the registry writes it: hex."""
    return f"{serial:x}"


def public_key_text(key: object) -> str:
    """Return a public key as PEM. Raises IdentityError for a kind without a PEM form."""
    try:
        pem: bytes = key.public_bytes(  # type: ignore[attr-defined]
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (AttributeError, ValueError) as error:
        raise IdentityError("a key of an unknown kind") from error
    return pem.decode()
