"""What the coordinator has seen of each site's books: one file a site, never set back.

A site whose books are behind what was seen finds out from the receipt that comes with its next
order. A site that made new books is refused its work, by itself, until the operator takes its file
away: that is a decision for people.
"""

from __future__ import annotations

from pathlib import Path

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.plans import Anchor
from fedfactory.durable_file import write_durably


class Anchors:
    """The newest anchor of each site, in a folder that outlives runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known = {
            path.stem: from_json(Anchor, path.read_text()) for path in folder.glob("*.json")
        }

    def of(self, site: str) -> Anchor | None:
        """Return the newest anchor of a site."""
        return self._known.get(site)

    def keep(self, site: str, anchor: Anchor) -> None:
        """Keep an anchor that a site sent, durably, if it is newer.

        One that names another site or other books, or is older, changes nothing.
        """
        known = self._known.get(site)
        newer = known is None or (
            anchor.ledger == known.ledger
            and anchor.ledger_sequence >= known.ledger_sequence
            and anchor.audit_length >= known.audit_length
        )
        if anchor.site != site or not newer or anchor == known:
            return
        write_durably(self._folder / f"{site}.json", to_json(anchor))
        self._known[site] = anchor
