"""`site-agent kill`: stops all work where it is, and lets no result leave.

What the work cost stays spent. Holds until 'site-agent resume'. Works with the coordinator offline.
"""

from __future__ import annotations

from collections.abc import Sequence

from site_agents.cli.control import say


def main(words: Sequence[str]) -> int:
    """Say so; return 0 once it is durable."""
    return say("killed", words, description=__doc__)
