"""Whether a certificate's chain leads to a root that is trusted. Pure: the time comes in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from fedfactory.contracts.errors import IdentityError


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM text, in its order; at least one.

    Raises:
        IdentityError: there is none, or one that cannot be read.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise IdentityError("this holds no certificates (PEM)") from error


def root_of(
    chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime
) -> x509.Certificate:
    """Return the root that vouches for `chain[0]`: each of the chain is issued by the next.

    Every certificate on the way must be valid now. A chain may end early, at one that a trusted
    root issued itself.

    Raises:
        IdentityError: no root vouches for it, or a certificate on the way is not valid now.
    """
    for place, certificate in enumerate(chain):
        _check_valid(certificate, now)
        for root in roots:
            if is_issued_by(certificate, root):
                _check_valid(root, now)
                return root
        if place + 1 < len(chain) and not is_issued_by(certificate, chain[place + 1]):
            break
    raise IdentityError("the certificate does not lead to a root that is trusted here")


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether an authority issued a certificate: its name, its right to, its signature."""
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    return constraints.ca


def _check_valid(certificate: x509.Certificate, now: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        raise IdentityError(
            f"the certificate '{certificate.subject.rfc4514_string()}' is valid from {begin} to"
            f" {end}, not now"
        )
