"""`site-agent tick`: one pass for cron: takes the orders there are, works, answers, ends.

Where no daemon may stay. While another agent has the home it does nothing and ends with 0.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fedfactory.cli.arguments import Arguments
from site_agents.cli.home import add_home, find_home
from site_agents.config import load_agent_config


def main(words: Sequence[str]) -> int:
    """Do one pass; return the exit code."""
    parser = Arguments(prog="site-agent tick", description=__doc__)
    add_home(parser)
    config = load_agent_config(find_home(parser.parse_args(words).home), [])
    from fedfactory.lease import LeaseHeldError
    from site_agents.daemon import tick

    try:
        return tick(config)
    except LeaseHeldError as error:
        print(f"site-agent: nothing to do: {error}", file=sys.stderr)
        return 0
