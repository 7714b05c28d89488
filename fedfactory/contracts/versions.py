"""Which versions of fedfactory speak with each other: the same major, neighbouring minor ones."""

from __future__ import annotations

import functools
import re
from importlib import metadata
from typing import Final

from fedfactory.contracts.errors import ProtocolError

MINORS_APART: Final = 1
_VERSION: Final = re.compile(r"(\d{1,6})\.(\d{1,6})([.\-+a-z][0-9a-zA-Z.\-+]{0,48})?")


@functools.cache
def own_version() -> str:
    """Return the version of this installation."""
    return metadata.version("fedfactory")


def check_versions(theirs: str, ours: str) -> None:
    """Let a peer of version `theirs` speak with us.

    Raises:
        ProtocolError: no version, another major one, or more than a minor one apart. The sentence
            is the peer's to read.
    """
    their_major, their_minor = _parsed(theirs)
    our_major, our_minor = _parsed(ours)
    if their_major != our_major or abs(their_minor - our_minor) > MINORS_APART:
        older = (their_major, their_minor) < (our_major, our_minor)
        raise ProtocolError(
            f"fedfactory {theirs} here and {ours} at the coordinator do not work together:"
            f" neighbouring minor versions do; bring {'yours' if older else 'the coordinator'} up"
            " to date"
        )


def _parsed(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ProtocolError("the caller does not say which version of fedfactory it is")
    return int(match[1]), int(match[2])
