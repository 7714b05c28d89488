"""Signatures over canonical JSON by the keys of certificates (ECDSA, P-256 or P-384, SHA-256)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import IdentityError
from fedfactory.contracts.plans import Signature

_ALGORITHM = ec.ECDSA(hashes.SHA256())


class Signer:
    """Signs with one private key (PEM).

    Raises:
        IdentityError: the key is unreadable or on no NIST curve.
    """

    def __init__(self, key_pem: bytes) -> None:
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise IdentityError("the signing key is no readable private key (PEM)") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError("the signing key must be on the curve P-256 or P-384")
        self._key = key
        self.public_key = (
            key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def sign(self, value: Any) -> Signature:
        """Return the signature over a value's canonical JSON, which names the value's type."""
        signed = self._key.sign(_message(value), _ALGORITHM)
        return Signature(public_key=self.public_key, value=base64.b64encode(signed).decode())


def new_signing_key() -> bytes:
    """Return a new private key (P-256, PEM) for a Signer."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def verify(value: Any, signature: Signature) -> str:
    """Return the fingerprint of the key whose signature over `value` this is.

    Raises:
        IdentityError: the key or signature is unreadable, or the signature is not over this value.
    """
    try:
        key = serialization.load_pem_public_key(signature.public_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("a signature's key must be on the curve P-256 or P-384")
        key.verify(base64.b64decode(signature.value, validate=True), _message(value), _ALGORITHM)
    except (ValueError, binascii.Error, UnsupportedAlgorithm, InvalidSignature) as error:
        raise IdentityError("the signature is not over what it came with") from error
    return fingerprint(signature.public_key)


def fingerprint(public_key: str) -> str:
    """Return 'sha256:<hex>' of a public key (PEM), by which a policy pins it.

    Raises:
        IdentityError: it is no public key.
    """
    try:
        key = serialization.load_pem_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError("this is no public key (PEM)") from error
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "sha256:" + hashlib.sha256(der).hexdigest()


def _message(value: Any) -> bytes:
    # The type's name keeps a signature over one kind of value from passing for another's.
    return f"fedfactory {type(value).__name__}\n{to_json(value)}".encode()
