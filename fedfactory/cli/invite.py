"""`fedfactory invite NAME`: a small file that a site or a person enrols with, once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedfactory.cli.arguments import count
from fedfactory.cli.forms import tell
from fedfactory.cli.operating import connected, operating
from fedfactory.cli.revoke import ROLES
from fedfactory.contracts.errors import UsageError

if TYPE_CHECKING:
    from fedfactory.wire.membership import Invitation

DAYS: Final = 7
DAY_S: Final = 86400.0


def run(words: Sequence[str]) -> int:
    """Write the invitation; return 0."""
    parser = operating(
        "invite",
        "Write a small file that somebody enrols with, once. Treat it as a password: send it over"
        " a channel that you would send a password over.",
    )
    parser.add_argument("name", metavar="NAME", help="letters, digits, '.', '_', '-'")
    parser.add_argument("--role", choices=ROLES, default="site", help="(default: site)")
    parser.add_argument(
        "--days", type=count, default=DAYS, help=f"how long it is good for (default {DAYS})"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="a new file (default: NAME.invitation)"
    )
    asked = parser.parse_args(words)
    out: Path = asked.out or Path(f"{asked.name}.invitation")
    if out.exists():
        raise UsageError(f"{out} is there already: name another file with --out, or remove it")
    folder = out.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):  # the invitation before would be replaced for none
        raise UsageError(f"{folder} is no folder that can be written to: name another with --out")
    if asked.role == "site":
        from site_agents.catalogue import check_site_name

        check_site_name(asked.name)  # its agent would refuse the name, with the invitation used
    from fedfactory.contracts.codec import to_json
    from fedfactory.durable_file import create_durably, sync_folder

    with connected(asked) as client:
        invitation = client.invite(asked.role, asked.name, asked.days * DAY_S)
    create_durably(out, f"{to_json(invitation)}\n".encode())
    sync_folder(folder)
    return tell_invitation(asked, out, invitation)


def tell_invitation(asked: argparse.Namespace, out: Path, invitation: Invitation) -> int:
    """Print what was written to `out`, and what is to be done with it; return 0."""
    from fedfactory.operator.telling import moment

    role, name, until = invitation.role, invitation.name, invitation.expires_at
    how = (
        f"site-agent init --invitation {out.name}, then site-agent enrol {out.name}"
        if role == "site"
        else f"fedfactory enrol {out.name}"
    )
    return tell(
        asked,
        {"role": role, "name": name, "file": str(out), "expires_at": until},
        ids=[out],
        words=[
            f"{out}: for {role} {name}, once, until {moment(until)}",
            f"send it as you would a password; there: {how}",
        ],
    )
