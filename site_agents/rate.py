"""How much of what comes unasked is attended to: so many at once, then one more every second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BURST: Final = 20
EVERY_S: Final = 1.0


class Rate:
    """Lets BURST through at once, and one more every EVERY_S; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._left = float(BURST)
        self._at = clock()

    @property
    def left(self) -> bool:
        """Whether one would be let through now."""
        self._refill()
        return self._left >= 1

    def take(self) -> bool:
        """Let one through; whether it was."""
        if not self.left:
            return False
        self._left -= 1
        return True

    def _refill(self) -> None:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._at) / EVERY_S)
        self._at = now
