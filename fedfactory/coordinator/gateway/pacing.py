"""Which doorbells ring now: as many sites at once as SuperLink serves well. Pure.

SuperLink answers one request after another. Two hundred sites that fetch their orders all at once
each wait for all the others; one after another the same orders are fetched sooner, and a site that
is rung has its order at once. So a ring takes a place, until its site has fetched what there was or
a short time has passed. Sites that let their time pass get places of their own: whoever is away or
slow holds up nobody else, and is rung all the same.

Times are seconds of any clock that does not jump; they come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Final

# SuperLink has one processor's worth of Python, some 5 ms a request. Of those who fetch, about
# twice as many send a reply at the same time: all wait for each other.
AT_ONCE: Final = 4
LATE_AT_ONCE: Final = 2
PATIENCE_S: Final = 1.0


@dataclass(slots=True)
class _Lane:
    places: int
    waiting: dict[str, None] = field(default_factory=dict)  # in the order they came
    rung: dict[str, float] = field(default_factory=dict)  # site -> until when it keeps its place

    def take(self, until: float) -> list[str]:
        """Give the free places to the first that wait and are not being waited for."""
        free = max(0, self.places - len(self.rung))
        taken = list(islice((site for site in self.waiting if site not in self.rung), free))
        for site in taken:
            del self.waiting[site]
            self.rung[site] = until
        return taken


@dataclass(slots=True)
class Pacing:
    """Rings that are wanted, and those that wait for their site."""

    _prompt: _Lane = field(default_factory=lambda: _Lane(AT_ONCE))
    _tardy: _Lane = field(default_factory=lambda: _Lane(LATE_AT_ONCE))
    _late: set[str] = field(default_factory=set)

    def want(self, site: str) -> None:
        """A site is to be rung; once more if it is being waited for."""
        self._lane(site).waiting[site] = None

    def fetched(self, site: str) -> None:
        """A site has fetched an order, or found none."""
        self._lane(site).rung.pop(site, None)
        if site in self._late:
            self._late.discard(site)
            if self._tardy.waiting.pop(site, site) is None:
                self._prompt.waiting[site] = None

    def gone(self, site: str) -> None:
        """A site's doorbell is gone: when it comes back it looks by itself."""
        for lane in (self._prompt, self._tardy):
            lane.waiting.pop(site, None)
            lane.rung.pop(site, None)
        self._late.discard(site)

    def due(self, now: float) -> list[str]:
        """Return the sites to ring now, which take their places; call it after every change."""
        lanes = (self._prompt, self._tardy)
        for lane in lanes:
            for late in [site for site, until in lane.rung.items() if until <= now]:
                del lane.rung[late]
                self._fell_behind(late)
        return [site for lane in lanes for site in lane.take(now + PATIENCE_S)]

    def changes_at(self) -> float | None:
        """When a place becomes free by itself and somebody waits for one; None: never."""
        untils = [
            min(lane.rung.values()) for lane in (self._prompt, self._tardy)
            if lane.waiting and lane.rung
        ]  # fmt: skip
        return min(untils, default=None)

    def _fell_behind(self, site: str) -> None:
        self._late.add(site)
        if self._prompt.waiting.pop(site, site) is None:
            self._tardy.waiting[site] = None

    def _lane(self, site: str) -> _Lane:
        return self._tardy if site in self._late else self._prompt
