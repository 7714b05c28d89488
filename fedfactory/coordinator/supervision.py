"""When to start a run's process again, and when to give up waiting for what is silent. Pure.

Times are seconds of one monotonic clock and come in as arguments. run_process.py looks and kills.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# How long silence is taken for work on a busy machine; then for a freeze.
FROZEN_S: Final = 15.0
# From its start to its hello: a loaded machine takes long to import Flower.
HELLO_S: Final = 60.0
# How long a stop may go unheard: a strategy's code may never end, whatever else its process does.
UNHEARD_S: Final = 60.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
DEATHS_TO_SUSPEND: Final = 5

RunStep = Literal["wait", "start", "kill", "suspend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """What is seen of a run's process now.

    `started_at` is when it was started (None: there is none), `greeted` whether it has said hello
    since; `alive_at` is its last sign of life. `deaths` are those since the run last wrote anything
    of substance to its journal, `died_at` the last. `unheard_since` is when the process was told to
    stop now, if its journal does not say that it heard.
    """

    now: float
    started_at: float | None
    greeted: bool
    alive_at: float
    deaths: int
    died_at: float
    unheard_since: float | None = None


def next_step(seen: RunSeen) -> RunStep:
    """Return what to do about a run that is to go on."""
    if seen.deaths >= DEATHS_TO_SUSPEND:
        return "suspend"
    if seen.started_at is None:
        rested = seen.now - seen.died_at >= pause_s(seen.deaths)
        return "start" if seen.deaths == 0 or rested else "wait"
    if seen.unheard_since is not None and seen.now - seen.unheard_since > UNHEARD_S:
        return "kill"
    if seen.greeted:
        return "kill" if seen.now - seen.alive_at > FROZEN_S else "wait"
    return "kill" if seen.now - seen.started_at > HELLO_S else "wait"


def pause_s(deaths: int) -> float:
    """How long to wait before the next start: nothing after the first death, then doubling."""
    if deaths <= 1:
        return 0.0
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(deaths - 2, 16)))
