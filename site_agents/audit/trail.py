"""The chain read from its file: which heads it went through, and whether that is all of it.

`Trail` follows lines; `settle` decides, from the trail and the head file alone, what state a crash
or an attacker left. What is to be done about it is the caller's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fedfactory.contracts.errors import IntegrityError
from site_agents.audit.head_file import HEAD, Heads
from site_agents.audit.line import Line, read_line

CHAIN: Final = "chain.jsonl"
_HEAD_BYTES: Final = 32


class Trail:
    """The heads of a chain, from its start on (32 bytes a line in memory)."""

    def __init__(self, start: str) -> None:
        self._heads = bytearray.fromhex(start.removeprefix("sha256:"))
        self.end = 0
        """Where the last whole line ends, in bytes."""
        self.last: Line | None = None

    @property
    def length(self) -> int:
        """Lines followed."""
        return len(self._heads) // _HEAD_BYTES - 1

    def head_at(self, length: int) -> str | None:
        """Return the head after `length` lines; None if the trail is shorter."""
        if not 0 <= length <= self.length:
            return None
        at = length * _HEAD_BYTES
        return "sha256:" + self._heads[at : at + _HEAD_BYTES].hex()

    @property
    def head(self) -> str:
        """The head after the last line."""
        head = self.head_at(self.length)
        assert head is not None
        return head

    def extend(self, line: Line, length_bytes: int) -> None:
        """Take the line that follows."""
        self._heads += bytes.fromhex(line.head.removeprefix("sha256:"))
        self.end += length_bytes
        self.last = line

    def follow(self, file: int, size: int, each: Callable[[Line], None] | None = None) -> int:
        """Read the lines between the trail's end and `size`; return how many bytes follow them.

        Those bytes, if any, are a last line without its end: a write that never finished.

        Raises:
            IntegrityError: a line that does not follow, or the file is shorter than the trail.
        """
        if size < self.end:
            raise IntegrityError(f"audit line {self.length} was cut off while the chain was in use")
        with os.fdopen(os.dup(file), "rb") as lines:
            lines.seek(self.end)
            while self.end < size:
                raw = lines.readline(size - self.end)
                if not raw.endswith(b"\n"):
                    break
                line = read_line(raw, self.length + 1, self.head)
                if each:
                    each(line)
                self.extend(line, len(raw))
        return size - self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a crash left: a whole line never acknowledged, or bytes of an unfinished one."""

    unacknowledged: bool
    torn_bytes: int

    @property
    def notice(self) -> str | None:
        """What there is to tell, or None."""
        if self.unacknowledged:
            return "the last line was written and not acknowledged when its writer died; it is kept"
        if self.torn_bytes:
            return f"{self.torn_bytes} bytes of a line that was never finished follow the last line"
        return None


def settle(trail: Trail, heads: Heads, torn_bytes: int) -> Standing:
    """Decide whether the chain is all that was acknowledged.

    A line is written and made durable, then its checkpoint, then it is acknowledged. So a crash
    leaves either an unfinished line behind two whole checkpoints, or one whole line ahead of the
    newest checkpoint (whose successor may be torn). Anything else is no crash.

    Raises:
        IntegrityError: lines are missing, altered or added; the message says which.
    """
    expected = heads.newest.length
    ahead = trail.length - expected
    if ahead < 0:
        first = trail.length + 1
        lines = f"line {first} is" if first == expected else f"lines {first} to {expected} are"
        raise IntegrityError(f"audit {lines} missing or cut short: the chain's end was cut off")
    for checkpoint in (heads.newest, heads.before):
        if checkpoint and trail.head_at(checkpoint.length) != checkpoint.head:
            raise IntegrityError(
                f"audit line {checkpoint.length} or one before is not what the audit key signed"
            )
    if ahead > 1 or (ahead == 1 and torn_bytes):
        raise IntegrityError(f"audit lines from {expected + 1} on were never acknowledged: added")
    if heads.torn and ahead == 0:
        raise IntegrityError(f"audit/{HEAD} was altered: one of its two checkpoints is no more")
    return Standing(unacknowledged=ahead == 1, torn_bytes=torn_bytes)
