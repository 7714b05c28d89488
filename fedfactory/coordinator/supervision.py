"""When to start again what died, and when to give up waiting for what is silent. Pure.

Times are seconds of one monotonic clock and come in as arguments. Who looks and who kills:
superlink.py for Flower's programs, run_process.py for a run's ServerApp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

# How long silence is taken for work on a busy machine; then for a freeze.
FROZEN_S: Final = 15.0
# From handing a run to Flower to its ServerApp's hello, before SuperExec is taken for frozen.
HELLO_S: Final = 60.0
# A life this long forgives the deaths before it.
LONG_LIFE_S: Final = 60.0
# So does answering for this long: what came up and was killed is no program that cannot live.
HEALTHY_S: Final = 10.0
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
DEATHS_TO_SUSPEND: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Restarts:
    """How often a program died young in a row, when it began, and from when to when it answered."""

    deaths: int = 0
    began_at: float = 0.0
    answered: tuple[float, float] | None = None

    def began(self, now: float) -> Restarts:
        """Note a start."""
        return replace(self, began_at=now, answered=None)

    def alive(self, at: float) -> Restarts:
        """Note that it answered then."""
        first = at if self.answered is None else self.answered[0]
        return replace(self, answered=(first, at))

    def died(self, now: float) -> Restarts:
        """Note a death: of a young one it counts, of an old or healthy one it is the first."""
        first, last = self.answered or (0.0, 0.0)
        forgiven = now - self.began_at >= LONG_LIFE_S or last - first >= HEALTHY_S
        return replace(self, deaths=1 if forgiven else self.deaths + 1)

    @property
    def pause_s(self) -> float:
        """How long to wait before the next start: nothing after the first death, then doubling."""
        if self.deaths <= 1:
            return 0.0
        return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self.deaths - 2, 16)))


RunStep = Literal["wait", "start", "kill", "kill_superexec", "suspend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeen:
    """What is seen of a run's process now.

    `handed_at` is when the run was handed to Flower (None: it is not), `here` whether its ServerApp
    has said hello since; `alive_at` is its last sign of life. `deaths` are those by itself since it
    last wrote anything of substance to its journal, `died_at` the last. `flower_ready` tells that
    SuperLink answers and knows the sites, and that SuperExec is there; `starter_stopped` that
    SuperExec was stopped (SIGSTOP) and runs no more.
    """

    now: float
    flower_ready: bool
    starter_stopped: bool
    handed_at: float | None
    here: bool
    alive_at: float
    deaths: int
    died_at: float


def next_step(seen: RunSeen) -> RunStep:
    """Return what to do about a run that is to go on."""
    if seen.deaths >= DEATHS_TO_SUSPEND:
        return "suspend"
    if seen.handed_at is None:
        pause = Restarts(deaths=seen.deaths).pause_s
        rested = seen.deaths == 0 or seen.now - seen.died_at >= pause
        return "start" if seen.flower_ready and rested else "wait"
    if seen.here:
        return "kill" if seen.now - seen.alive_at > FROZEN_S else "wait"
    # Handed over, and nobody came yet: a loaded machine takes long, a stopped starter for ever.
    patience_s = FROZEN_S if seen.starter_stopped else HELLO_S
    return "kill_superexec" if seen.now - seen.handed_at > patience_s else "wait"
