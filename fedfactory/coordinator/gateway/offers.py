"""Who may download which blob: what runs offer to sites, and files lent to single members."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LENT_PER_PEER: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    sites: frozenset[str]
    max_upload_bytes: int


class Offers:
    """Open runs with what they offer, as run -> site -> digests; loans, as peer -> digest -> file.

    Usable from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}
        self._offered: dict[str, dict[str, set[str]]] = {}
        self._lent: dict[str, OrderedDict[str, Path]] = {}

    def open_run(self, run: str, sites: Iterable[str], max_upload_bytes: int) -> None:
        """Let a run's sites send updates of so many bytes at most."""
        with self._lock:
            self._runs[run] = _Run(sites=frozenset(sites), max_upload_bytes=max_upload_bytes)
            self._offered[run] = defaultdict(set)

    def close_run(self, run: str) -> None:
        """Take no update of the run and offer nothing of it any more."""
        with self._lock:
            self._runs.pop(run, None)
            self._offered.pop(run, None)

    def max_upload_bytes(self, site: str) -> int | None:
        """Return how long a site's update may be; None if no open run is the site's."""
        with self._lock:
            limits = [run.max_upload_bytes for run in self._runs.values() if site in run.sites]
        return max(limits, default=None)

    def offer(self, run: str, site: str, digest: str) -> None:
        """Let a site of an open run download a blob."""
        with self._lock:
            if run in self._runs and site in self._runs[run].sites:
                self._offered[run][site].add(digest)

    def withdraw(self, run: str, digest: str) -> None:
        """Offer a blob of a run to nobody any more."""
        with self._lock:
            for digests in self._offered.get(run, {}).values():
                digests.discard(digest)

    def is_offered(self, site: str, digest: str) -> bool:
        """Whether any open run offers a blob to a site."""
        with self._lock:
            return any(digest in sites.get(site, ()) for sites in self._offered.values())

    def lend(self, peer: str, digest: str, path: Path) -> None:
        """Let a member download a file; of a member's loans the latest few count."""
        with self._lock:
            mine = self._lent.setdefault(peer, OrderedDict())
            mine[digest] = path
            mine.move_to_end(digest)
            if len(mine) > LENT_PER_PEER:
                mine.popitem(last=False)

    def lent(self, peer: str, digest: str) -> Path | None:
        """Return the file that a member may download as this blob."""
        with self._lock:
            mine = self._lent.get(peer)
            return mine.get(digest) if mine is not None else None
