"""The operators that a policy pins: who compared each key, until when it counts, or is revoked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Final

from fedfactory.contracts.errors import IntegrityError
from site_agents.config import POLICY_FILE, AgentConfig
from site_agents.doctor.finding import Finding, fail, ok, warn
from site_agents.policy import OperatorPin, Policy
from site_agents.revocations import Kept, kept_revocations

AREA: Final = "operators"
SOON_DAYS: Final = 30
_CONFIRM: Final = (
    "have them read it to you from `fedfactory whoami`, by another way than it came, then:"
    " site-agent policy confirm-operator {} FINGERPRINT"
)


def examine_operators(config: AgentConfig, policy: Policy | None) -> Iterator[Finding]:
    """Look at each pin, and at what is kept of revocations."""
    try:
        kept = kept_revocations(config.home)
    except IntegrityError as error:
        yield fail(AREA, str(error), "until then every order is refused")
        return
    if policy is not None:
        yield from judge_pins(policy.operators, kept, time.time())


def judge_pins(
    pins: Mapping[str, OperatorPin], kept: tuple[Kept, ...], now: float
) -> Iterator[Finding]:
    """Say how it stands with each pin at Unix time `now`. Pure."""
    revoked = {one.signed.revocation.key: one for one in kept}
    for name, pin in pins.items():
        left, confirmed = pin.days_left(now), pin.confirmed
        if (one := revoked.get(pin.key)) is not None:
            text = f"{name} is revoked ({one.told}): what they sign is refused"
            yield warn(AREA, text, f"take {name} out of operators in {POLICY_FILE}")
        elif left < 0:
            text = f"the pin of {name} ended on {pin.until}: what they sign is refused"
            yield warn(AREA, text, f"take it out of {POLICY_FILE}, or {_CONFIRM.format(name)}")
        elif confirmed is None:
            text = f"{name} {pin.key} was never confirmed; counts until {pin.until}"
            yield warn(AREA, text, _CONFIRM.format(name))
        elif left <= SOON_DAYS:
            text = f"the pin of {name} ends on {pin.until}, in {left} days"
            yield warn(AREA, text, _CONFIRM.format(name))
        else:
            text = f"{name}, confirmed by {confirmed.by} on {confirmed.on}, until {pin.until}"
            yield ok(AREA, text)
