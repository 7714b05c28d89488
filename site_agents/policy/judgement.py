"""Whether a person of the site decides before a result leaves. Pure."""

from __future__ import annotations

from fedfactory.contracts.plans import OrderEnvelope
from site_agents.policy.values import Policy


def needs_approval(policy: Policy, sending: OrderEnvelope, *, approved_before: bool) -> bool:
    """Whether a person decides before the result of this work leaves.

    `approved_before`: a person already approved a result of this plan and kind. `first_round` asks
    for the first result that would leave, whichever round it is of: a coordinator that skips round
    1 does not get past it. `final_only` asks in the plan's last round; earlier updates have left.
    """
    match policy.egress:
        case "automatic":
            return False
        case "first_round":
            return not approved_before
        case "final_only":
            return sending.order.round >= sending.signed.terms.rounds
        case "every_round":
            return True
