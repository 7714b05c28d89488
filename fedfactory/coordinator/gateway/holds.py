"""Which run still needs which blob. Pure; the store keeps the files accordingly.

Several holders may have equal bytes, hence one file: a site that sends back the very model it was
given, or a second run that begins with the same one, must not be able to have it thrown away. Nor
must a site that sends the same update in two rounds: the second is claimed before the run gives up
the first, so claims are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Holds:
    """Each run's own blobs, as (run, digest), and its sites' updates, as (run, site, digest)."""

    _own: set[tuple[str, str]] = field(default_factory=set)
    _claimed: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def adopt(self, run: str, digest: str) -> None:
        """Hold a blob of a run's own."""
        self._own.add((run, digest))

    def claim(self, run: str, site: str, digest: str) -> None:
        """Hold a site's update for a run, once more if it is held already."""
        self._claimed[run, site, digest] += 1

    def unclaim(self, run: str, site: str, digest: str) -> None:
        """Give up one claim of a site's, if one is left."""
        self._drop(run, site, digest)

    def claimed(self, site: str, digest: str) -> bool:
        """Whether any run holds this update of this site's."""
        return any((held, name) == (digest, site) for _, name, held in self._claimed)

    def release(self, run: str, digest: str) -> bool:
        """Give up one hold of a run, a site's before its own; True if nobody holds the blob now."""
        sites = sorted(site for name, site, held in self._claimed if (name, held) == (run, digest))
        if sites:
            self._drop(run, sites[0], digest)
        else:
            self._own.discard((run, digest))
        return not self.is_held(digest)

    def restore(self, run: str, claims: Iterable[tuple[str, str]], own: Iterable[str]) -> set[str]:
        """Let a run hold just this, claims as (site, digest); return what nobody holds any more."""
        before = {held for name, held in self._own if name == run}
        before |= {held for name, _, held in self._claimed if name == run}
        self._own = {one for one in self._own if one[0] != run} | {(run, d) for d in own}
        others = {one: count for one, count in self._claimed.items() if one[0] != run}
        self._claimed = Counter(others)
        self._claimed.update({(run, site, digest) for site, digest in claims})
        return {digest for digest in before if not self.is_held(digest)}

    def holds(self, run: str, digest: str) -> bool:
        """Whether a run holds a blob."""
        if (run, digest) in self._own:
            return True
        return any((name, held) == (run, digest) for name, _, held in self._claimed)

    def is_held(self, digest: str) -> bool:
        """Whether anybody holds a blob."""
        if any(held == digest for _, held in self._own):
            return True
        return any(held == digest for _, _, held in self._claimed)

    def _drop(self, run: str, site: str, digest: str) -> None:
        claim = (run, site, digest)
        if self._claimed[claim] > 1:
            self._claimed[claim] -= 1
        else:  # or none is left: the run was restored meanwhile
            self._claimed.pop(claim, None)
