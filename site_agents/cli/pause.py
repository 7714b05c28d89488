"""`site-agent pause`: begins no new work; what is under way ends and leaves.

Holds until 'site-agent resume'. Works with the coordinator offline.
"""

from __future__ import annotations

from collections.abc import Sequence

from site_agents.cli.control import say


def main(words: Sequence[str]) -> int:
    """Say so; return 0 once it is durable."""
    return say("paused", words, description=__doc__)
