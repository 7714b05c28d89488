"""The chain as it stands, read without writing: for `audit verify`, `show` and `export`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedfactory.contracts.errors import IntegrityError
from site_agents.audit.head_file import HEAD, parse_heads, read_heads
from site_agents.audit.line import Line, check_line
from site_agents.audit.statements import read_public_key, start_of
from site_agents.audit.trail import CHAIN, Trail, settle


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A chain that holds: its heads, and what a crash left that opening it will set right."""

    trail: Trail
    notice: str | None


class ReadChain:
    """A chain to be held against what others saw of it; nothing is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: Found | None = None

    def refresh(self) -> None:
        """Read the chain. Raises IntegrityError as `read` does."""
        self._found = read(self._folder, lambda _: None)

    def head_at(self, length: int) -> str | None:
        """Return the head after `length` lines, as of the last refresh; None if it is shorter."""
        assert self._found is not None
        return self._found.trail.head_at(length)


def verify(folder: Path) -> Found:
    """Check every byte of a chain: links, entries, signatures, and that none is missing.

    Takes about 0.2 ms a line. A running agent does not disturb it.

    Raises:
        IntegrityError: what was altered, removed, moved, repeated or added, and at which line.
    """
    key = read_public_key(folder)
    return read(folder, lambda line: check_line(line, key))


def read(folder: Path, each: Callable[[Line], None]) -> Found:
    """Hand every line to `each`, then say how the chain stands. Links and entries are checked.

    Raises:
        IntegrityError: as `verify`, but a changed signature of a line goes unseen.
    """
    key = read_public_key(folder)
    trail = Trail(start_of(key))
    with _opened(folder / CHAIN) as chain, _opened(folder / HEAD) as head_file:
        size, raw_heads = _at_one_moment(chain, head_file)
        torn_bytes = trail.follow(chain, size, each)
        standing = settle(trail, parse_heads(raw_heads, key), torn_bytes)
    if standing.unacknowledged:
        _check_last(trail, key)
    return Found(trail=trail, notice=standing.notice)


def _at_one_moment(chain: int, head_file: int) -> tuple[int, bytes]:
    """Return the chain's size and the head file's bytes while nobody writes."""
    fcntl.flock(chain, fcntl.LOCK_SH)
    try:
        return os.fstat(chain).st_size, read_heads(head_file)
    finally:
        fcntl.flock(chain, fcntl.LOCK_UN)


def _check_last(trail: Trail, key: Ed25519PublicKey) -> None:
    assert trail.last is not None
    check_line(trail.last, key)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise IntegrityError(f"{path} is missing or cannot be read: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)
