"""A private key under a passphrase: scrypt (RFC 7914), then ChaCha20-Poly1305 (RFC 8439).

The cost is 128 MiB and a third of a second (n = 2^17, r = 8, p = 1, OWASP's recommendation). It is
written beside what is sealed, and bounded when read: a file of somebody else's making cannot ask
for more than 1 GiB.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError

SCRYPT_N: Final = 2**17
_R: Final = 8
_P: Final = 1
_LEAST_N: Final = 2**14
_MOST_N: Final = 2**20  # 1 GiB of memory at r = 8
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_MOST_SEALED: Final = 4096


class WrongPassphraseError(IdentityError):
    """The passphrase is another one, or what is sealed was altered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A secret under a passphrase; salt, nonce and the sealed bytes in base64.

    Raises:
        IdentityError: a cost that is out of bounds, or bytes of another length.
    """

    scrypt_n: int
    scrypt_r: int
    scrypt_p: int
    salt: str
    nonce: str
    sealed: str

    def __post_init__(self) -> None:
        n = self.scrypt_n
        if not (_LEAST_N <= n <= _MOST_N and n & (n - 1) == 0):
            raise IdentityError(f"scrypt_n: expected a power of 2 from {_LEAST_N} to {_MOST_N}")
        if (self.scrypt_r, self.scrypt_p) != (_R, _P):
            raise IdentityError(f"scrypt_r, scrypt_p: expected {_R}, {_P}")
        lengths = len(_bytes(self.salt)), len(_bytes(self.nonce))
        if lengths != (_SALT_BYTES, _NONCE_BYTES) or len(self.sealed) > _MOST_SEALED:
            raise IdentityError("salt, nonce or sealed: of another length than expected")


def seal(secret: bytes, passphrase: bytes, bound: bytes) -> Sealed:
    """Seal a secret, bound to what stands beside it (`bound`), which must be the same to open.

    Raises:
        EnvironmentFailedError: there is not enough memory.
    """
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    form = Sealed(
        scrypt_n=SCRYPT_N,
        scrypt_r=_R,
        scrypt_p=_P,
        salt=_text(salt),
        nonce=_text(nonce),
        sealed="",
    )
    cipher = ChaCha20Poly1305(_derived(form, passphrase))
    return replace(form, sealed=_text(cipher.encrypt(nonce, secret, _beside(form, bound))))


def unseal(sealed: Sealed, passphrase: bytes, bound: bytes) -> bytes:
    """Return the secret.

    Raises:
        WrongPassphraseError: another passphrase, or it or `bound` was altered.
        EnvironmentFailedError: there is not enough memory.
    """
    cipher = ChaCha20Poly1305(_derived(sealed, passphrase))
    try:
        return cipher.decrypt(_bytes(sealed.nonce), _bytes(sealed.sealed), _beside(sealed, bound))
    except InvalidTag as error:
        raise WrongPassphraseError from error


def _derived(form: Sealed, passphrase: bytes) -> bytes:
    scrypt = Scrypt(
        salt=_bytes(form.salt), length=_KEY_BYTES, n=form.scrypt_n, r=form.scrypt_r, p=form.scrypt_p
    )
    try:
        return scrypt.derive(passphrase)
    except MemoryError as error:
        need = 128 * form.scrypt_n * form.scrypt_r // 2**20
        raise EnvironmentFailedError(
            f"the passphrase cannot be tried: that needs {need} MiB of memory"
        ) from error


def _beside(form: Sealed, bound: bytes) -> bytes:
    return b"fedfactory sealed\n" + to_json(replace(form, sealed="")).encode() + b"\n" + bound


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise IdentityError("salt, nonce or sealed: no base64") from error
