"""Whether the roots of a bundle follow on those that are trusted already. Pure: the time comes in.

A bundle (PEM) holds the roots to trust from now on, the newest first, and cross certificates: of a
root's key by the root before it. A root that is new needs its cross certificate by a root that is
trusted, or by one that follows on such a root: so a member that slept through rotations catches up,
and nobody but the holder of a trusted root's key can add one. RFC 5280, sections 4.2.1 and 6.1, and
RFC 4210, section 4.4 (a new key, certified with the old one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.errors import IdentityError
from fedfactory.identity.chains import read_certificates
from fedfactory.identity.facts import public_key_text
from fedfactory.identity.signing import fingerprint

MAX_BUNDLE_BYTES: Final = 64 * 1024
MOST_CERTIFICATES: Final = 16
# Authorities below a certificate in a chain: under a cross certificate the issuer, under a root
# that made one both.
BELOW_CROSS: Final = 1
BELOW_ROOT: Final = 2
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_KNOWN: Final = (x509.BasicConstraints.oid, x509.KeyUsage.oid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """What a bundle holds, in its order: self-signed roots, and certificates of roots' keys."""

    roots: tuple[x509.Certificate, ...]
    crosses: tuple[x509.Certificate, ...]


def read_bundle(pem: bytes) -> Bundle:
    """Return what a bundle holds; what is trusted of it, `follow` decides.

    Raises:
        IdentityError: it is too large, holds no root, or a certificate that cannot be read or that
            carries its own name without its own signature.
    """
    if len(pem) > MAX_BUNDLE_BYTES:
        raise IdentityError(
            f"a bundle of authorities has {len(pem)} bytes: expected at most {MAX_BUNDLE_BYTES}"
        )
    found = read_certificates(pem)
    if len(found) > MOST_CERTIFICATES:
        raise IdentityError(
            f"a bundle of authorities holds {len(found)} certificates: expected at most"
            f" {MOST_CERTIFICATES}"
        )
    try:
        roots = tuple(one for one in found if one.issuer == one.subject)
        crosses = tuple(one for one in found if one.issuer != one.subject)
    except ValueError as error:  # names are read only now
        raise IdentityError("a bundle of authorities holds a damaged certificate") from error
    if not roots:
        raise IdentityError("a bundle of authorities holds no root")
    for root in roots:
        if (fault := _signature_fault(root, root)) is not None:
            raise IdentityError(f"the root {_named(root)} of a bundle {fault}")
    return Bundle(roots=roots, crosses=crosses)


def follow(
    trusted: Sequence[x509.Certificate], bundle_pem: bytes, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the roots to trust from now on, in the bundle's order.

    `trusted` are those trusted until now, the newest first. Cross certificates that lead from none
    of them are of no account.

    Raises:
        IdentityError: the bundle cannot be read; a root of it is not valid now, or is new and no
            trusted root leads to it; or the newest trusted root, and all that follow on it, are
            left out.
    """
    bundle = read_bundle(bundle_pem)
    for root in bundle.roots:
        if (fault := _authority_fault(root, now, BELOW_CROSS)) is not None:
            raise IdentityError(f"the root {_named(root)} of a bundle {fault}")
    authorities, followers = _closure(trusted, bundle, now)
    for root in bundle.roots:
        if root not in authorities:
            raise IdentityError(_unfounded(root, bundle, authorities, now))
    if not any(root in followers for root in bundle.roots):
        raise IdentityError(
            f"the newest trusted root {_named(trusted[0])} is not in the bundle, nor one that"
            " follows on it: a rotation is never taken back"
        )
    return bundle.roots


def _closure(
    trusted: Sequence[x509.Certificate], bundle: Bundle, now: datetime
) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """Return every authority that `trusted` leads to, and those that follow on its first."""
    authorities, followers = list(trusted), list(trusted[:1])
    left, before = list(bundle.crosses), -1
    while len(left) != before:
        before = len(left)
        for cross in tuple(left):
            signers = (a for a in authorities if _cross_fault(cross, a, now) is None)
            if (signer := next(signers, None)) is None:
                continue
            left.remove(cross)
            certified = [root for root in bundle.roots if _is_of(cross, root)] or [cross]
            authorities += certified
            if signer in followers:
                followers += certified
    return authorities, followers


def _cross_fault(cross: x509.Certificate, signer: x509.Certificate, now: datetime) -> str | None:
    """Return why a cross certificate does not let its key follow on `signer`; None if it does."""
    if (fault := _signature_fault(cross, signer)) is not None:
        return fault
    if (fault := _authority_fault(signer, now, BELOW_ROOT)) is not None:
        return f"is by an authority that {fault}"
    return _authority_fault(cross, now, BELOW_CROSS)


def _is_of(cross: x509.Certificate, root: x509.Certificate) -> bool:
    """Whether a cross certificate is of a root's name and key."""
    return cross.subject == root.subject and cross.public_key() == root.public_key()


def _signature_fault(certificate: x509.Certificate, signer: x509.Certificate) -> str | None:
    try:
        if not isinstance(signer.public_key(), ec.EllipticCurvePublicKey):
            return "is by a key on no NIST curve"
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return "is not signed by the key that it names"
    return None


def _authority_fault(certificate: x509.Certificate, now: datetime, below: int) -> str | None:
    """Return why a certificate makes no authority now, over `below` others in a chain."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= now <= end:
        return f"is valid from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, not now"
    return _form_fault(certificate, below)


def _form_fault(certificate: x509.Certificate, below: int) -> str | None:
    try:
        key, extensions = certificate.public_key(), certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except (ValueError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return "does not say that it is an authority's"
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        return "is of a key that is not on the curve P-256 or P-384"
    if not (constraints.ca and usage.key_cert_sign):
        return "is not an authority's"
    if constraints.path_length is not None and constraints.path_length < below:
        return f"allows {constraints.path_length} authorities below it: expected {below}"
    if any(one.critical and one.oid not in _KNOWN for one in extensions):
        return "has a critical extension that is not known here"
    return None


def _unfounded(
    root: x509.Certificate,
    bundle: Bundle,
    authorities: Sequence[x509.Certificate],
    now: datetime,
) -> str:
    """Return the sentence for a new root that no trusted root leads to."""
    faults = [
        fault
        for cross in bundle.crosses
        if _is_of(cross, root)
        for signer in authorities
        if signer.subject == cross.issuer and (fault := _cross_fault(cross, signer, now))
    ]
    why = f" (the one that is there {faults[0]})" if faults else ""
    return (
        f"the root {_named(root)} is new, and no certificate of its key by a root that is trusted"
        f" here came with it{why}"
    )


def _named(root: x509.Certificate) -> str:
    return fingerprint(public_key_text(root.public_key()))
