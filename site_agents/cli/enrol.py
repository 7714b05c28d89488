"""`site-agent enrol`: enrols the site with an invitation: makes its key, has it certified.

Cut short, or the gateway not reached: the same command again goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, tell
from site_agents.cli.home import add_home, find_home


def main(words: Sequence[str]) -> int:
    """Enrol; return the exit code."""
    parser = Arguments(
        prog="site-agent enrol",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("invitation", type=Path, metavar="FILE", help="the invitation")
    add_home(parser)
    add_forms(parser)
    asked = parser.parse_args(words)
    home = find_home(asked.home)
    from fedfactory.wire.invitations import read_invitation
    from site_agents.enrolling import enrol

    invitation = read_invitation(asked.invitation)
    enrol(home, invitation)
    return tell(
        asked,
        {"site": invitation.name, "consortium": invitation.consortium, "home": str(home)},
        words=[
            f"enrolled: site '{invitation.name}' of '{invitation.consortium}'",
            f"  {asked.invitation} is used up and can be deleted",
            "next: site-agent doctor, then site-agent run",
        ],
    )
