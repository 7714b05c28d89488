"""`fedfactory revoke NAME --reason TEXT`: cut a member off at once, open streams too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fedfactory.cli.completers import completed, known_sites
from fedfactory.cli.forms import tell_done
from fedfactory.cli.operating import connected, operating

ROLES: Final = ("site", "operator", "viewer")


def run(words: Sequence[str]) -> int:
    """Revoke; return 0 once the member is cut off."""
    parser = operating(
        "revoke", "Cut a member off at once. It can come back by a new invitation alone."
    )
    name = parser.add_argument("name", metavar="NAME", help="as `fedfactory sites` lists them")
    completed(name, known_sites)
    parser.add_argument("--role", choices=ROLES, default="site", help="(default: site)")
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why; it is kept")
    asked = parser.parse_args(words)
    with connected(asked) as client:
        told = client.revoke(asked.role, asked.name, asked.reason)
    return tell_done(asked, told, role=asked.role, name=asked.name)
