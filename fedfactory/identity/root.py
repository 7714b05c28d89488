"""The root authority: a key under a passphrase, on a path its lead chooses, kept offline.

Needed to found a consortium and to rotate its authorities, and for nothing else. Its file (JSON)
holds the sealed key (sealing.py) and the root's own certificate, and is the owner's alone (0600).
No other root is ever written over it; a file of an older form is rewritten, whole or not at all,
when it is next opened.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, UsageError
from fedfactory.durable_file import create_durably, sync_folder, write_durably
from fedfactory.identity.certificates import (
    build_cross,
    build_issuer,
    build_root,
    new_authority_key,
    pem_of,
)
from fedfactory.identity.chains import read_certificates
from fedfactory.identity.formats import check_format
from fedfactory.identity.passphrases import check_passphrase
from fedfactory.identity.pkcs8 import load_pkcs8
from fedfactory.identity.sealing import (
    SCRYPT_N,
    Sealed,
    WrongPassphraseError,
    seal,
    unseal,
)

FORMAT: Final = 2  # 1 was PKCS #8 and the certificate, both PEM
MAX_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFile:
    """A root's file: its key (PKCS #8, DER), sealed and bound to its certificate (PEM)."""

    format: int
    certificate: str
    key: Sealed


class Root:
    """A root's key and certificate, in this process's memory while it is used."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate
        self.note = ""
        """What became of a file of an older form when it was opened; empty for a present one."""

    @classmethod
    def new(cls, consortium: str) -> Self:
        """Make a root, not yet on disk."""
        key = new_authority_key()
        return cls(key, build_root(key, consortium))

    @classmethod
    def open(cls, path: Path, passphrase: bytes) -> Self:
        """Read a root's file; one of an older form, or cost, is rewritten in the present one.

        Raises:
            UsageError: no such file, no root's file, or another passphrase.
        """
        content = _read(path)
        is_present = False
        try:
            if content.startswith(b"{"):
                certificate, der, is_present = _open_sealed(path, content, passphrase)
                key = serialization.load_der_private_key(der, password=None)
            else:
                certificate = read_certificates(content)[0]
                key = load_pkcs8(content, passphrase)
        except (ValueError, WrongPassphraseError) as error:
            # One sentence for both: a wrong passphrase decrypts to no readable key.
            raise UsageError(
                f"{path} does not open: another passphrase, or a damaged file"
            ) from error
        except (UsageError, EnvironmentFailedError):
            raise
        except (FedfactoryError, TypeError, UnsupportedAlgorithm) as error:
            raise UsageError(f"{path} holds no encrypted root key and certificate") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or (
            key.public_key() != certificate.public_key()
        ):
            raise UsageError(f"{path}: the key is not the certificate's")
        root = cls(key, certificate)
        if not is_present:
            root._rewrite(path, passphrase)
        return root

    def save(self, path: Path, passphrase: bytes) -> None:
        """Write the root's file, which must not be there yet.

        Raises:
            UsageError: a file is there, it cannot be written, or the passphrase is too short.
        """
        check_passphrase(passphrase)
        try:
            create_durably(path, self._sealed(passphrase))
            sync_folder(path.parent)
        except FileExistsError as error:
            raise UsageError(
                f"{path} is there already: a root key is never written over"
            ) from error
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # half a key is none
            raise UsageError(f"{path} cannot be written ({error.strerror})") from error

    def _rewrite(self, path: Path, passphrase: bytes) -> None:
        """Put the present form in an older one's place, once it is seen to open again."""
        content = self._sealed(passphrase)
        _open_sealed(path, content, passphrase)
        try:
            write_durably(path.resolve(), content)
        except OSError as error:
            self.note = (
                f"{path} has an older form, which guards its passphrase less, and cannot be"
                f" rewritten ({error.strerror}): copy it to where it can, and open it there"
            )
            return
        self.note = (
            f"{path} was rewritten: scrypt guards its passphrase now. Replace your other copies of"
            " it, and destroy the old ones"
        )

    def _sealed(self, passphrase: bytes) -> bytes:
        der = self._key.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        certificate = pem_of([self.certificate])
        key = seal(der, passphrase, certificate)
        file = RootFile(format=FORMAT, certificate=certificate.decode(), key=key)
        return f"{to_json(file)}\n".encode()

    def certify_issuer(self, key: ec.EllipticCurvePublicKey, consortium: str) -> x509.Certificate:
        """Return a certificate for an issuer's key."""
        return build_issuer(key, consortium, self.certificate, self._key)

    def certify_root(self, new_root: x509.Certificate) -> x509.Certificate:
        """Return a certificate for the key of the root that comes next."""
        return build_cross(new_root, self.certificate, self._key)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the root key {path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES} bytes: this is no root key")
    return content


def _open_sealed(
    path: Path, content: bytes, passphrase: bytes
) -> tuple[x509.Certificate, bytes, bool]:
    """Return certificate and key (DER), and whether the passphrase is guarded as new ones are."""
    check_format(path, content, FORMAT)
    file = from_json(RootFile, content)
    der = unseal(file.key, passphrase, file.certificate.encode())
    certificates = read_certificates(file.certificate.encode())
    return certificates[0], der, file.key.scrypt_n >= SCRYPT_N
