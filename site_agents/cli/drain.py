"""`site-agent drain`: begins no new work, and ends the agent when what is under way has left.

Holds until 'site-agent resume': an agent that is started before does no work. Works with the
coordinator offline.
"""

from __future__ import annotations

from collections.abc import Sequence

from site_agents.cli.control import say


def main(words: Sequence[str]) -> int:
    """Say so; return 0 once it is durable."""
    return say("draining", words, description=__doc__)
