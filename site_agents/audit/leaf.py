"""How an entry is committed to without being shown: salted fields, folded into one leaf. Pure.

Each field has a salt of its own, derived from the line's, so that one field can be shown and
another withheld: what is withheld cannot be guessed, what is shown cannot be changed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any, Final

from fedfactory.contracts.codec import to_json

SALT_BYTES: Final = 32


def sha256(data: bytes) -> str:
    """Return 'sha256:<hex>' of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def field_salt(salt: bytes, name: str) -> bytes:
    """Return one field's salt: HMAC-SHA256 by the line's (one field's tells nothing of others)."""
    return hmac.digest(salt, name.encode(), "sha256")


def commitment(salt: bytes, name: str, value: Any) -> str:
    """Return SHA-256 over a field's salt and the canonical JSON of [name, value]."""
    return sha256(field_salt(salt, name) + to_json([name, value]).encode())


def commitments(salt: bytes, entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the commitment of every field of an entry."""
    return {name: commitment(salt, name, value) for name, value in entry.items()}


def leaf_of(committed: Mapping[str, str]) -> str:
    """Return the leaf: SHA-256 over the canonical JSON of {field name: commitment}."""
    return sha256(to_json(committed).encode())
