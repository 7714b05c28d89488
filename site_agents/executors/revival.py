"""When a worker that died while it was idle is started again. Pure.

Times are seconds of one monotonic clock and come in as arguments. Looked after by local.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

# One that dies sooner than this after its start may be unable to live at all.
YOUNG_S: Final = 60.0
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Revival:
    """How often one worker died young in a row; `due_at` is when it is to start, None: it lives."""

    deaths: int = 0
    due_at: float | None = None

    def dead(self, began_at: float, now: float) -> Revival:
        """Note that it is dead: after a long life it is due at once, after short ones ever later.

        `began_at` is when it was started. Said again of the same death it changes nothing.
        """
        if self.due_at is not None:
            return self
        if now - began_at >= YOUNG_S:
            return Revival(due_at=now)
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.deaths, 16))
        return Revival(deaths=self.deaths + 1, due_at=now + pause_s)

    def lives(self) -> Revival:
        """Note that it was started, by whomever."""
        return replace(self, due_at=None)

    def is_due(self, now: float) -> bool:
        """Whether it is to be started now."""
        return self.due_at is not None and now >= self.due_at
