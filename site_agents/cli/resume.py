"""`site-agent resume`: lets the agent work again after pause, drain or kill.

An agent that has ended is started as it was before.
"""

from __future__ import annotations

from collections.abc import Sequence

from site_agents.cli.control import say


def main(words: Sequence[str]) -> int:
    """Say so; return 0 once it is durable."""
    return say("running", words, description=__doc__)
