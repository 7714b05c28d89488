"""`site-agent deny`: keep one result here for good; the coordinator learns only that it was."""

from __future__ import annotations

from collections.abc import Sequence

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms
from fedfactory.contracts.errors import UsageError
from site_agents.cli.deciding import decide
from site_agents.cli.home import add_home


def main(words: Sequence[str]) -> int:
    """Deny one update; return 0 once it is durable."""
    parser = Arguments(
        prog="site-agent deny",
        description="Keep one result here. The coordinator learns that a person did not let it"
        " leave, and not why; its privacy cost stays spent.",
    )
    add_home(parser)
    parser.add_argument("id", metavar="ID", help="as 'site-agent approvals' lists it")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="stays at the site")
    add_forms(parser)
    asked = parser.parse_args(words)
    if not asked.reason.strip():
        raise UsageError("--reason is empty: say why, for the site's own books")
    return decide(asked, approved=False)
