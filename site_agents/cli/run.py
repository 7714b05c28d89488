"""`site-agent run`: runs the site's agent until SIGTERM, which lets it finish its orders.

A second SIGTERM ends it at once. Under systemd it says when it is ready and that it lives.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import files

from fedfactory.cli.arguments import Arguments
from site_agents.cli.home import add_home, find_home
from site_agents.config import AGENT_FILE, load_agent_config


def main(words: Sequence[str]) -> int:
    """Run the agent of a home; return the exit code."""
    parser = Arguments(
        prog="site-agent run",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="\n".join(["keys of agent.yaml and their defaults (??? must be given):", *_keys()]),
    )
    add_home(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="instead of agent.yaml's")
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end when standard input closes, as local mode's agents do",
    )
    asked = parser.parse_intermixed_args(words)
    config = load_agent_config(find_home(asked.home), asked.overrides)
    from site_agents.daemon import run_agent

    return run_agent(config, until_stdin_closes=asked.until_stdin_closes)


def _keys() -> list[str]:
    text = (files("fedfactory.conf") / AGENT_FILE).read_text(encoding="utf-8")
    return [f"  {line}" for line in text.splitlines() if not line.startswith("#")]
