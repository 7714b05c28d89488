"""What the audit key signs, and the key itself. Ed25519, of the audit's own: never the TLS key.

A checkpoint says "after `length` lines the head was `head`, at `at`". Every line is signed as one,
so that a line cannot be put in, changed or moved without the key.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedfactory.contracts.errors import IntegrityError
from fedfactory.durable_file import create_durably
from site_agents.audit.leaf import sha256

KEY: Final = "audit.key"
PUBLIC_KEY: Final = "audit.pub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where the chain stood: lines, head (sha256:<hex>), UTC time; signature in base64."""

    length: int
    head: str
    at: str
    signature: str

    def holds(self, key: Ed25519PublicKey) -> bool:
        """Return whether the signature is by this key, over what the checkpoint says."""
        try:
            signature = base64.b64decode(self.signature, validate=True)
            key.verify(signature, _checkpoint_text(self.length, self.head, self.at))
        except (InvalidSignature, ValueError):
            return False
        # Base64 leaves bits over that decoding ignores: there is one way to write a signature.
        return base64.b64encode(signature).decode() == self.signature


def sign_checkpoint(key: Ed25519PrivateKey, length: int, head: str, at: str) -> Checkpoint:
    """Return a signed checkpoint."""
    signature = _signed(key, _checkpoint_text(length, head, at))
    return Checkpoint(length=length, head=head, at=at, signature=signature)


def sign_export(key: Ed25519PrivateKey, digest: str, length: int, head: str, at: str) -> str:
    """Return the signature (base64) of an export: the digest of its lines, and where they end."""
    return _signed(key, f"fedfactory audit export\n{digest}\n{length}\n{head}\n{at}\n".encode())


def start_of(key: Ed25519PublicKey) -> str:
    """Return the head of an empty chain: it names the key, so no two sites' chains begin alike."""
    return sha256(key.public_bytes_raw())


def make_key(folder: Path) -> Ed25519PrivateKey:
    """Make the key (mode 0600) and its public part in `folder`; neither may be there yet."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for name, pem, mode in ((KEY, private, 0o600), (PUBLIC_KEY, public, 0o644)):
        create_durably(folder / name, pem, mode=mode)
    return key


def read_public_key(folder: Path) -> Ed25519PublicKey:
    """Return the public part of the audit key.

    Raises:
        IntegrityError: the file is missing or is no Ed25519 public key.
    """
    try:
        key = serialization.load_pem_public_key((folder / PUBLIC_KEY).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise _unreadable(folder / PUBLIC_KEY, "public key", error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise IntegrityError(f"{folder / PUBLIC_KEY} is not an Ed25519 key")
    return key


def read_key(folder: Path) -> Ed25519PrivateKey:
    """Return the audit key.

    Raises:
        IntegrityError: the file is missing, is no Ed25519 key, or audit.pub is not its public part.
    """
    try:
        key = serialization.load_pem_private_key((folder / KEY).read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unreadable(folder / KEY, "private key", error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise IntegrityError(f"{folder / KEY} is not an Ed25519 key")
    if key.public_key() != read_public_key(folder):
        raise IntegrityError(
            f"{folder / PUBLIC_KEY} is not the public part of {KEY}: one of the two was replaced"
        )
    return key


def _unreadable(path: Path, what: str, error: Exception) -> IntegrityError:
    return IntegrityError(f"{path} is missing or no readable {what}", diagnostic=str(error))


def _checkpoint_text(length: int, head: str, at: str) -> bytes:
    return f"fedfactory audit checkpoint\n{length}\n{head}\n{at}\n".encode()


def _signed(key: Ed25519PrivateKey, text: bytes) -> str:
    return base64.b64encode(key.sign(text)).decode()
