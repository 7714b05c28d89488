"""Notes in the registry when a site comes and when it goes."""

from __future__ import annotations

from collections.abc import Callable


class Attendance:
    """A listener of the gateway's; `seen(site)` notes that a site is, or was until now, here."""

    def __init__(self, seen: Callable[[str], None]) -> None:
        self._seen = seen

    def came(self, site: str) -> None:
        """See gateway.Listener."""
        self._seen(site)

    def went(self, site: str) -> None:
        """See gateway.Listener."""
        self._seen(site)
