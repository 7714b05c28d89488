"""Renews a site's certificate in time."""

from __future__ import annotations

from pathlib import Path

from fedfactory.wire import renewal
from site_agents.enrolling import IDENTITY


class Renewal(renewal.Renewal):
    """Renews the identity of the site at `home`."""

    def __init__(self, home: Path) -> None:
        super().__init__(home / IDENTITY)
