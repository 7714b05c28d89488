"""Who still needs which blob. Pure; the store keeps the files accordingly.

Two holders may have equal bytes, hence one file: a site that sends back the very model it was given
must not be able to have it thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

# An upload that no reply has named yet. A site answers one order at a time; the rest is leftovers.
UNCLAIMED_PER_SITE: Final = 4


@dataclass(slots=True)
class Holds:
    """The coordinator's own blobs, and each site's uploads: unclaimed (oldest first) or claimed."""

    _own: set[str] = field(default_factory=set)
    _unclaimed: dict[str, list[str]] = field(default_factory=dict)
    _claimed: set[tuple[str, str]] = field(default_factory=set)

    def adopt(self, digest: str) -> None:
        """Hold a blob of the coordinator's own."""
        self._own.add(digest)

    def upload(self, site: str, digest: str) -> list[str]:
        """Hold a site's upload; return digests that nobody holds any more."""
        if (site, digest) in self._claimed:
            return []
        held = self._unclaimed.setdefault(site, [])
        if digest in held:
            held.remove(digest)
        held.append(digest)
        dropped = held[:-UNCLAIMED_PER_SITE]
        del held[:-UNCLAIMED_PER_SITE]
        return [old for old in dropped if not self._is_held(old)]

    def claim(self, site: str, digest: str) -> bool:
        """Keep a site's upload until it is released; False if the site has sent no such thing."""
        if digest in (held := self._unclaimed.get(site, [])):
            held.remove(digest)
            self._claimed.add((site, digest))
        return (site, digest) in self._claimed

    def release(self, digest: str) -> bool:
        """Give up one hold, a site's before our own; True if nobody holds the blob any more."""
        holders = sorted(site for site, held in self._claimed if held == digest)
        waiting = sorted(site for site, held in self._unclaimed.items() if digest in held)
        if holders:
            self._claimed.remove((holders[0], digest))
        elif waiting:
            self._unclaimed[waiting[0]].remove(digest)
        else:
            self._own.discard(digest)
        return not self._is_held(digest)

    def _is_held(self, digest: str) -> bool:
        return (
            digest in self._own
            or any(held == digest for _, held in self._claimed)
            or any(digest in held for held in self._unclaimed.values())
        )
