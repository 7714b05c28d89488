"""`fedfactory sites`: the consortium's members, and whose certificate ends soon."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fedfactory.cli.forms import print_json
from fedfactory.cli.operating import connected, operating


def run(words: Sequence[str]) -> int:
    """Print the members; return 0."""
    parser = operating("sites", "List the members: sites first, then operators and viewers.")
    asked = parser.parse_args(words)
    with connected(asked) as client:
        found = client.members()
    order = ("site", "operator", "viewer")
    members = sorted(found.members, key=lambda m: (order.index(m.role), m.name))
    if asked.json:
        from fedfactory.contracts.codec import encode

        listed = [encode(member) for member in members]
        print_json({"consortium": found.consortium, "members": listed})
    elif asked.quiet:
        for member in members:
            if member.role == "site" and member.status == "enrolled":
                print(member.name)
    else:
        from fedfactory.operator.telling import member_lines

        print("\n".join(member_lines(members, time.time())))
    return 0
