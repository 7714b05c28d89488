"""`fedfactory enrol`: makes an operator's or viewer's folder with an invitation.

Keys are made here and stay here. Cut short, or not reached: the same command again goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import tell
from fedfactory.cli.operating import add_operating, operator_folder
from fedfactory.contracts.codec import encode, from_json
from fedfactory.contracts.errors import UsageError

if TYPE_CHECKING:
    from fedfactory.identity.operators import Membership


def run(words: Sequence[str]) -> int:
    """Enrol; return 0."""
    parser = Arguments(
        prog="fedfactory enrol",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("invitation", type=Path, metavar="FILE", help="the invitation")
    add_operating(parser)
    asked = parser.parse_args(words)
    folder = operator_folder(asked.folder)
    from fedfactory.identity.operators import (
        IDENTITY,
        PEOPLE,
        Membership,
        save_membership,
    )
    from fedfactory.wire.enrolling import enrol_identity
    from fedfactory.wire.invitations import read_invitation

    invitation = read_invitation(asked.invitation)
    if invitation.role not in PEOPLE:
        raise UsageError(
            f"{asked.invitation} is for the {invitation.role} '{invitation.name}', not for a"
            " person: `site-agent enrol` takes it"
        )
    membership = Membership(
        consortium=invitation.consortium,
        gateway=invitation.gateway,
        name=invitation.name,
        role=invitation.role,
        coordinator_key=invitation.coordinator_key,
    )
    _check_same(folder, membership)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        enrol_identity(folder / IDENTITY, invitation)
        save_membership(folder, membership)
    except OSError as error:
        raise UsageError(f"{error.filename or folder}: {error.strerror}") from error
    return tell(
        asked,
        encode(membership),
        words=[
            f"enrolled: {invitation.role} '{invitation.name}' of '{invitation.consortium}'",
            f"  {asked.invitation} is used up and can be deleted",
            f"next: fedfactory sites --as {folder}",
        ],
    )


def _check_same(folder: Path, wanted: Membership) -> None:
    """Refuse a folder that is somebody else's, or of another consortium."""
    from fedfactory.identity.operators import MEMBERSHIP_FILE, Membership

    path = folder / MEMBERSHIP_FILE
    if not path.exists():
        return
    there = from_json(Membership, path.read_bytes())
    if (there.consortium, there.role, there.name) != (wanted.consortium, wanted.role, wanted.name):
        raise UsageError(
            f"{folder} is the folder of {there.role} '{there.name}' of '{there.consortium}': name"
            " another one with --as DIR"
        )
