"""The key that an invitation's token stands for: good for enrolling, and for nothing else.

The token is the seed of a P-256 key, by HKDF-SHA256 (RFC 5869) and reduction modulo n - 1 of 16
bytes more than n has (FIPS 186-5, A.2.1): so it never crosses the wire, and the coordinator, which
certifies the key, keeps its public half alone.
"""

from __future__ import annotations

import re
import secrets
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedfactory.contracts.errors import IdentityError

TOKEN_BYTES: Final = 32
_TOKEN: Final = re.compile(r"[0-9a-f]{64}")
_INFO: Final = b"fedfactory invitation 1"
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SEED_BYTES: Final = 48


def new_token() -> str:
    """Return a new token (hex)."""
    return secrets.token_hex(TOKEN_BYTES)


def bootstrap_key(token: str) -> ec.EllipticCurvePrivateKey:
    """Return the key that a token stands for.

    Raises:
        IdentityError: it is no token.
    """
    if not _TOKEN.fullmatch(token):
        raise IdentityError("the invitation's token is not 64 hexadecimal digits")
    derived = HKDF(algorithm=hashes.SHA256(), length=_SEED_BYTES, salt=None, info=_INFO)
    seed = int.from_bytes(derived.derive(bytes.fromhex(token)), "big")
    return ec.derive_private_key(seed % (_ORDER - 1) + 1, ec.SECP256R1())
