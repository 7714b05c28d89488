"""Which sites of a planned run cannot take part now, and why: what we know, then what they say."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from fedfactory.contracts.plans import SignedTerms
from fedfactory.contracts.questions import Answer, Query, SignedQuery
from fedfactory.contracts.refusals import REFUSALS
from fedfactory.contracts.versions import own_version
from fedfactory.identity.roles import Role
from fedfactory.wire.membership import Member
from fedfactory.wire.operations import Finding

if TYPE_CHECKING:
    from fedfactory.coordinator.anchors import Anchors
    from fedfactory.coordinator.gateway.front_door import Skewed
    from fedfactory.identity.signing import Signer

ASK_TIMEOUT_S: Final = 20.0
ASK_AT_ONCE: Final = 32
_NOW: Final = {
    "offline": "the site is not connected now",
    "no_answer": f"the site is connected, and did not answer within {ASK_TIMEOUT_S:.0f} s",
}


class Asker(Protocol):
    """What is needed of the gateway."""

    def connected(self) -> list[str]:
        """Sites whose doorbell is open."""

    def ask(self, site: str, question: SignedQuery, timeout_s: float) -> Answer | None:
        """Ask a site; None if it did not answer in time."""


def unfit_sites(
    signed: SignedTerms,
    members: Mapping[str, Member],
    anchors: Anchors,
    gateway: Asker,
    signer: Signer,
) -> tuple[Finding, ...]:
    """Return what speaks against each site's part in the run of `signed`, by site.

    `members` are the consortium's sites by name, as `turned_away` shows them. Every site that is
    here is asked, all at once.
    """
    connected = set(gateway.connected())

    def look(site: str) -> str:
        if code := _known_fault(members.get(site)):
            return code
        if site not in connected:
            return "offline"
        question = Query(site=site, signed=signed, receipt=anchors.of(site), logs=None)
        asked = SignedQuery(query=question, signature=signer.sign(question))
        answer = gateway.ask(site, asked, ASK_TIMEOUT_S)
        if answer is None or answer.preflight is None:
            return "no_answer"
        return answer.preflight.code

    sites = signed.terms.sites
    with ThreadPoolExecutor(min(ASK_AT_ONCE, len(sites)), thread_name_prefix="fit") as pool:
        codes = dict(zip(sites, pool.map(look, sites), strict=True))
    return tuple(
        Finding(site=site, code=code, sentence=_sentence(code, members.get(site)))
        for site, code in codes.items()
        if code
    )


def turned_away(member: Member, skewed: Mapping[str, Skewed]) -> Member:
    """Return a member as it stands: a site refused for its version is not merely away."""
    found = skewed.get(member.name)
    if found is None or (member.role, member.status) != (Role.SITE, "enrolled"):
        return member
    when = datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    reason = (
        f"its fedfactory {found.version or 'of no version'} is too far from the coordinator's"
        f" {own_version()} (refused, last at {when}): bring the older one up to date"
    )
    return replace(member, version=found.version or member.version, reason=reason)


def _sentence(code: str, member: Member | None) -> str:
    if code == "offline" and member is not None and member.reason:
        return f"the site calls and is turned away: {member.reason}"
    return _NOW.get(code, REFUSALS[code])


def _known_fault(member: Member | None) -> str:
    if member is None or member.status == "invited":
        return "not_enrolled"
    return "revoked" if member.status == "revoked" else ""
