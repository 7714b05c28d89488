"""Passphrases of new root keys: long enough, or generated."""

from __future__ import annotations

import secrets
from typing import Final

from fedfactory.contracts.errors import UsageError

LEAST_PASSPHRASE: Final = 12  # characters
LEAST_DIFFERENT: Final = 5
# 32 letters and digits that are not taken for each other: 5 bits each.
_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_GROUPS: Final = 6
_IN_GROUP: Final = 4


def check_passphrase(passphrase: bytes) -> None:
    """Check the passphrase of a new root key; one of an older key's opens it, however short.

    Raises:
        UsageError: it is shorter than 12 characters, or has fewer than 5 different ones.
    """
    try:
        text = passphrase.decode()
    except UnicodeDecodeError:
        text = passphrase.decode("latin-1")
    if len(text) < LEAST_PASSPHRASE or len(set(text)) < LEAST_DIFFERENT:
        raise UsageError(
            f"the passphrase is too short: expected {LEAST_PASSPHRASE} characters or more,"
            f" {LEAST_DIFFERENT} of them different; or let one be made: --generate-passphrase"
        )


def generate_passphrase() -> str:
    """Return a new passphrase of 120 random bits, in groups that a person can copy."""
    groups = ("".join(secrets.choice(_LETTERS) for _ in range(_IN_GROUP)) for _ in range(_GROUPS))
    return "-".join(groups)
