"""The root authority: a key under a passphrase, on a path its lead chooses, kept offline.

Needed to found a consortium and to rotate its authorities, and for nothing else. Its file holds the
encrypted key (PKCS #8) and the root's own certificate, is the owner's alone (0600), and is never
written over.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.errors import IdentityError, UsageError
from fedfactory.durable_file import create_durably, sync_folder
from fedfactory.identity.certificates import (
    build_cross,
    build_issuer,
    build_root,
    new_authority_key,
    pem_of,
)
from fedfactory.identity.chains import read_certificates

LEAST_PASSPHRASE: Final = 8  # characters


class Root:
    """A root's key and certificate, in this process's memory while it is used."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def new(cls, consortium: str) -> Self:
        """Make a root, not yet on disk."""
        key = new_authority_key()
        return cls(key, build_root(key, consortium))

    @classmethod
    def open(cls, path: Path, passphrase: bytes) -> Self:
        """Read a root's file.

        Raises:
            UsageError: no such file, no root's file, or another passphrase.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UsageError(f"the root key {path} cannot be read ({error.strerror})") from error
        try:
            certificate = read_certificates(content)[0]
            key = serialization.load_pem_private_key(content, password=passphrase)
        except ValueError as error:
            # One sentence for both: a wrong passphrase decrypts to no readable key.
            raise UsageError(
                f"{path} does not open: another passphrase, or a damaged file"
            ) from error
        except (IdentityError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{path} holds no encrypted root key and certificate") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != certificate.public_key()
        ):
            raise UsageError(f"{path}: the key is not the certificate's")
        return cls(key, certificate)

    def save(self, path: Path, passphrase: bytes) -> None:
        """Write the root's file, which must not be there yet.

        Raises:
            UsageError: a file is there, it cannot be written, or the passphrase is too short.
        """
        if len(passphrase) < LEAST_PASSPHRASE:
            raise UsageError(
                f"the passphrase is too short: expected {LEAST_PASSPHRASE} characters or more"
            )
        encrypted = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase),
        )
        try:
            create_durably(path, encrypted + pem_of([self.certificate]))
            sync_folder(path.parent)
        except FileExistsError as error:
            raise UsageError(
                f"{path} is there already: a root key is never written over"
            ) from error
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # half a key is none
            raise UsageError(f"{path} cannot be written ({error.strerror})") from error

    def certify_issuer(self, key: ec.EllipticCurvePublicKey, consortium: str) -> x509.Certificate:
        """Return a certificate for an issuer's key."""
        return build_issuer(key, consortium, self.certificate, self._key)

    def certify_root(self, new_root: x509.Certificate) -> x509.Certificate:
        """Return a certificate for the key of the root that comes next."""
        return build_cross(new_root, self.certificate, self._key)
