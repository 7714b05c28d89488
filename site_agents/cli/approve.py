"""`site-agent approve`: let one result leave, after `approvals` showed it."""

from __future__ import annotations

from collections.abc import Sequence

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms
from site_agents.cli.deciding import decide
from site_agents.cli.home import add_home


def main(words: Sequence[str]) -> int:
    """Approve one update; return 0 once it is durable."""
    parser = Arguments(
        prog="site-agent approve",
        description="Let one result leave. The id is of exactly the update that"
        " 'site-agent approvals' showed; another one has another id.",
    )
    add_home(parser)
    parser.add_argument("id", metavar="ID", help="as 'site-agent approvals' lists it")
    parser.add_argument("--reason", default="", metavar="TEXT", help="kept with who and when")
    add_forms(parser)
    asked = parser.parse_args(words)
    return decide(asked, approved=True)
