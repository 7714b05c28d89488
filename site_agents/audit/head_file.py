"""How long the chain must be: its last two checkpoints, in a file of fixed size beside it.

A chain that is cut off is whole as far as it goes; only something outside it says that lines are
missing. Checkpoint n lies in slot n % 2 and overwrites n - 2 in place: a write that a crash tears
leaves the other slot, one fdatasync makes it durable, and a full disk cannot stop it half-way.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import IntegrityError, ProtocolError
from site_agents.audit.statements import Checkpoint

HEAD: Final = "head.json"
_SLOT_BYTES: Final = 512
_BLANK: Final = b" " * (_SLOT_BYTES - 1) + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The newest checkpoint and the one before.

    `before` is None in an empty chain and where the slot is `torn`: no whole checkpoint lies in it.
    """

    newest: Checkpoint
    before: Checkpoint | None
    torn: bool


def slot(checkpoint: Checkpoint) -> bytes:
    """Return a checkpoint as it lies in its slot."""
    return to_json(checkpoint).encode().ljust(_SLOT_BYTES - 1) + b"\n"


def first_heads(checkpoint: Checkpoint) -> bytes:
    """Return the whole file for an empty chain."""
    return slot(checkpoint) + _BLANK


def write_head(file: int, checkpoint: Checkpoint) -> None:
    """Put a checkpoint into its slot, durably."""
    os.pwrite(file, slot(checkpoint), checkpoint.length % 2 * _SLOT_BYTES)
    os.fdatasync(file)


def read_heads(file: int) -> bytes:
    """Return the file's bytes."""
    return os.pread(file, 2 * _SLOT_BYTES + 1, 0)


def parse_heads(raw: bytes, key: Ed25519PublicKey) -> Heads:
    """Return what the two slots hold.

    Raises:
        IntegrityError: neither holds a signed checkpoint, or they are not one line apart.
    """
    slots = [_parse_slot(raw[:_SLOT_BYTES], 0, key), _parse_slot(raw[_SLOT_BYTES:], 1, key)]
    whole = sorted((found for found in slots if found), key=lambda found: found.length)
    if not whole:
        raise IntegrityError(f"audit/{HEAD} holds no checkpoint signed with the audit key")
    if len(whole) == 1:
        blank = whole[0].length == 0 and raw[_SLOT_BYTES:] == _BLANK
        return Heads(newest=whole[0], before=None, torn=not blank)
    before, newest = whole
    if newest.length - before.length != 1:
        raise IntegrityError(
            f"audit/{HEAD} was altered: its checkpoints {before.length} and {newest.length} "
            "are not one line apart"
        )
    return Heads(newest=newest, before=before, torn=False)


def _parse_slot(raw: bytes, number: int, key: Ed25519PublicKey) -> Checkpoint | None:
    try:
        found = from_json(Checkpoint, raw)
    except ProtocolError:
        return None
    whole = slot(found) == raw and found.length % 2 == number and found.holds(key)
    return found if whole else None
