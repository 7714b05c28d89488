"""Enrols a site: an invitation for this very site becomes HOME/identity.

An invitation waits in HOME/identity/invitation.json, where `site-agent init --invitation` puts it,
or comes as a file. What the site's policy pins outweighs what an invitation says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import IdentityError, UsageError
from fedfactory.durable_file import remove_durably
from fedfactory.identity.roles import Role
from fedfactory.wire.enrolling import INVITATION, enrol_identity, is_under_way
from fedfactory.wire.invitations import read_invitation
from fedfactory.wire.membership import Invitation
from site_agents.config import AGENT_FILE, POLICY_FILE, load_agent_config
from site_agents.policy_file import load_policy

IDENTITY: Final = "identity"


def pending(home: Path) -> bool:
    """Whether an invitation waits in a home, or an enrolment there was cut short."""
    return (home / IDENTITY / INVITATION).exists() or is_under_way(home / IDENTITY)


def enrol(home: Path, invitation: Invitation | None = None, address: str | None = None) -> None:
    """Enrol the site at `home`, with an invitation, or the one that waits there (None).

    `address` is the gateway's as the site reaches it; None: as agent.yaml says. Afterwards no token
    is left in the home. Done again with the same invitation, it does nothing.

    Raises:
        UnreachableError: the gateway cannot be reached; try again later.
        RefusedError: the coordinator does not take the invitation, or it has expired.
        IdentityError: who answers is not the coordinator, or the policy pins another key than the
            invitation names.
        UsageError: the invitation is for somebody else, or damaged; or there is none.
    """
    config = load_agent_config(home, [])
    waiting = home / IDENTITY / INVITATION
    if invitation is None and waiting.exists():
        invitation = read_invitation(waiting)
    if invitation is not None:
        _check(home, config.site, invitation)
    try:
        enrol_identity(home / IDENTITY, invitation, address or config.gateway_address)
        if (home / IDENTITY).exists():
            remove_durably(waiting)
    except OSError as error:
        raise UsageError(f"{error.filename or home}: {error.strerror}") from error


def _check(home: Path, site: str, invitation: Invitation) -> None:
    if invitation.role != Role.SITE:
        raise UsageError(
            f"the invitation is for the {invitation.role} '{invitation.name}', not for a site:"
            " `fedfactory enrol` takes it"
        )
    if invitation.name != site:
        raise UsageError(
            f"the invitation is for the site '{invitation.name}', and {home / AGENT_FILE} says"
            f" '{site}': ask for one for '{site}'"
        )
    pinned = load_policy(home / POLICY_FILE).coordinators.get(invitation.consortium)
    if pinned is not None and pinned != invitation.coordinator_key:
        raise IdentityError(
            f"{home / POLICY_FILE} pins {pinned} for '{invitation.consortium}', the invitation"
            f" names {invitation.coordinator_key}: ask the consortium, by another way than the"
            " invitation came, which is right"
        )
