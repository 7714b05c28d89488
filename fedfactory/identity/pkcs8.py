"""Root keys of the older form: PKCS #8 under PBES2 with PBKDF2 (RFC 8018), in PEM.

Such a file says itself how much work it asks for. It is looked at before any is done: a file of
somebody else's making could name another function (scrypt, by its 100 GB), or years of rounds.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from fedfactory.contracts.errors import IdentityError

MOST_ROUNDS: Final = 10_000_000
_PEM: Final = re.compile(
    rb"-----BEGIN ENCRYPTED PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END ENCRYPTED PRIVATE KEY-----"
)
# SEQUENCE { SEQUENCE { PBES2, SEQUENCE { SEQUENCE { PBKDF2, SEQUENCE { salt, rounds, and so on; the
# lengths are of one byte each but the outermost (RFC 8018, A.2 and A.4).
_ROUNDS: Final = re.compile(
    rb"\x30(?:[\x00-\x7f]|\x81.|\x82..)"
    rb"\x30[\x00-\x7f]\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d"
    rb"\x30[\x00-\x7f]"
    rb"\x30[\x00-\x7f]\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0c"
    rb"\x30[\x00-\x7f]\x04(?:\x08.{8}|\x10.{16})\x02(?:\x01(.)|\x02(..)|\x03(...)|\x04(....))",
    re.DOTALL,
)


def load_pkcs8(content: bytes, passphrase: bytes) -> PrivateKeyTypes:
    """Return the key of a PEM file.

    Raises:
        IdentityError: there is none, or not one of the form that older versions wrote.
        ValueError: another passphrase.
    """
    found = _PEM.search(content)
    if found is None:
        raise IdentityError("there is no encrypted private key (PEM)")
    try:
        der = base64.b64decode(b"".join(found[1].split()), validate=True)
    except binascii.Error as error:
        raise IdentityError("the encrypted private key is no base64") from error
    form = _ROUNDS.match(der)
    rounds = None if form is None else next(one for one in form.groups() if one is not None)
    if rounds is None or not 0 < int.from_bytes(rounds, "big", signed=True) <= MOST_ROUNDS:
        raise IdentityError(f"expected PBES2 by PBKDF2 with at most {MOST_ROUNDS} rounds")
    return serialization.load_der_private_key(der, password=passphrase)
