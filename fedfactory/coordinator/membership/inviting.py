"""Makes invitations: a token, and a certificate that lets its key enrol and do nothing else."""

from __future__ import annotations

import logging
import math
from datetime import timedelta
from typing import Final

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.versions import own_version
from fedfactory.coordinator.membership.consortium import Consortium
from fedfactory.coordinator.membership.registry import INVITED_AS, Registry
from fedfactory.coordinator.membership.registry_rows import Issued
from fedfactory.identity.bootstrap import bootstrap_key, new_token
from fedfactory.identity.facts import facts_of, public_key_text
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import fingerprint
from fedfactory.wire.membership import Invitation, InviteRequest

log = logging.getLogger("fedfactory.coordinator.membership.inviting")

LONGEST_INVITATION_S: Final = 90 * 86400.0
INVITATION_S: Final = 7 * 86400.0


def invite(
    consortium: Consortium,
    registry: Registry,
    issuer: Issuer,
    wanted: InviteRequest,
    *,
    by: str,
    gateway: str | None = None,
) -> Invitation:
    """Make an invitation; `gateway` is the address it names, None for the consortium's.

    Raises:
        UsageError: a role that nobody is invited to, a lifetime out of range, or a member that
            is in good standing.
        IdentityError: a name that cannot be one, or the issuer has ended.
    """
    if wanted.role not in INVITED_AS:
        raise UsageError(f"role '{wanted.role[:20]}': expected one of {', '.join(INVITED_AS)}")
    if not (math.isfinite(wanted.lifetime_s) and 0 < wanted.lifetime_s <= LONGEST_INVITATION_S):
        raise UsageError("an invitation is good for more than 0 and at most 90 days")
    peer = Peer(role=Role(wanted.role), name=wanted.name)
    token = new_token()
    chain = issuer.sign_key(
        bootstrap_key(token).public_key(),
        Role.INVITED,
        peer.name,
        timedelta(seconds=wanted.lifetime_s),
    )
    made = issued(chain, issuer)
    registry.invite(peer, made, by=by)
    log.info("%s invites %s '%s'", by, peer.role, peer.name)
    return Invitation(
        consortium=consortium.name,
        gateway=gateway or consortium.gateway,
        role=peer.role,
        name=peer.name,
        token=token,
        certificate=chain.decode(),
        authority=issuer.bundle_pem.decode(),
        coordinator_key=consortium.coordinator_key,
        operator_keys=registry.operators(),
        expires_at=made.facts.not_after,
        version=own_version(),
    )


def issued(chain: bytes, issuer: Issuer) -> Issued:
    """Return what the registry keeps of a certificate that `issuer` just made."""
    root = fingerprint(public_key_text(issuer.roots[0].public_key()))
    return Issued(facts=facts_of(chain), root=root)
