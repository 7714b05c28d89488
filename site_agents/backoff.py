"""How long an agent waits before it connects again. Pure: chance comes as an argument.

A line that was cut is taken up at once, jittered so that the sites do not come back in one moment;
one that cannot be had is tried every few seconds, for a coordinator that was restarted should have
its sites back; a gateway that refuses this site is asked rarely, for a person has to act first.
"""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 0.4
GROWTH: Final = 1.6
LONGEST_S: Final = 3.0
FIRST_REFUSED_S: Final = 10.0
LONGEST_REFUSED_S: Final = 600.0
# A session that was lost sooner was none: else a site that is taken and thrown out would hammer.
STEADY_S: Final = 5.0


class Backoff:
    """The pauses of one agent; `chance` is a number from 0 to 1."""

    def __init__(self) -> None:
        self._cut_s = FIRST_S
        self._refused_s = FIRST_REFUSED_S

    def after_cut(self, session_s: float, chance: float) -> float:
        """Return the pause after a session of so many seconds was lost, or none came about (0)."""
        self._refused_s = FIRST_REFUSED_S
        if session_s >= STEADY_S:
            self._cut_s = FIRST_S
        pause_s, self._cut_s = self._cut_s, min(GROWTH * self._cut_s, LONGEST_S)
        return _jittered(pause_s, chance)

    def after_refusal(self, chance: float) -> float:
        """Return the pause after the gateway, or our own certificate, said no."""
        self._cut_s = FIRST_S
        pause_s = self._refused_s
        self._refused_s = min(2 * pause_s, LONGEST_REFUSED_S)
        return _jittered(pause_s, chance)


def _jittered(pause_s: float, chance: float) -> float:
    return (0.5 + 0.5 * chance) * pause_s
