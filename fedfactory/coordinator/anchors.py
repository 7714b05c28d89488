"""What the coordinator has seen of each site's books: one file a site, never set back.

A site whose books are behind what was seen finds out from the receipt that comes with its next
order. A site that made new books is refused its work, by itself, until the operator takes its file
away: that is a decision for people. Every run has a process of its own: the files are read anew at
each call and written under a lock, so no process sends or writes an older anchor than another kept.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FieldError
from fedfactory.contracts.plans import Anchor
from fedfactory.durable_file import write_durably

log = logging.getLogger("fedfactory.anchors")

_LOCK: Final = ".lock"


class Anchors:
    """The newest anchor of each site, in a folder that outlives runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def of(self, site: str) -> Anchor | None:
        """Return the newest anchor of a site.

        One with a number beyond its bound, which an older version kept, counts as none: it would
        end every run that the site is part of.
        """
        try:
            return from_json(Anchor, self._path(site).read_bytes())
        except FileNotFoundError:
            return None
        except FieldError as error:
            log.warning("%s is not believed: %s", self._path(site), error)
            return None

    def keep(self, site: str, anchor: Anchor) -> None:
        """Keep an anchor that a site sent, durably, if it is newer.

        One that names another site or other books, or is older, changes nothing.
        """
        if anchor.site != site:
            return
        with self._locked():
            known = self.of(site)
            newer = known is None or (
                anchor.ledger == known.ledger
                and anchor.ledger_sequence >= known.ledger_sequence
                and anchor.audit_length >= known.audit_length
            )
            if newer and anchor != known:
                write_durably(self._path(site), to_json(anchor))

    def _path(self, site: str) -> Path:
        return self._folder / f"{site}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
