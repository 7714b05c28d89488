"""Who took part in a round, and why others did not: values for people, from the machine's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import Final, Literal

from fedfactory.contracts.privacy import PrivacySpent
from fedfactory.contracts.refusals import REFUSALS
from fedfactory.rounds.events import ReplyAccepted
from fedfactory.rounds.state import RunState, SiteRecord, SiteStatus, Waiting

PartStatus = Literal[
    "asked", "took_part", "refused", "no_answer", "not_selected", "not_needed", "under_way"
]
# What a round did not want of a site, or has not got yet: nothing is amiss.
NOT_MISSED: Final = frozenset({"took_part", "not_selected", "not_needed", "under_way"})
_STATUS: Final[Mapping[SiteStatus, PartStatus]] = {
    "asked": "asked",
    "accepted": "took_part",
    "refused": "refused",
    "no_answer": "no_answer",
    "not_selected": "not_selected",
    "not_needed": "not_needed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One site's part in one phase of a round. `seconds` is its own working time.

    `code` is a key of REFUSALS, `reason` its sentence with the coordinator's own finding. In async
    mode `updates` counts those in the model; `staleness` and `norm_l2` are the largest of theirs.
    """

    status: PartStatus
    examples: int | None = None
    seconds: float | None = None
    code: str = ""
    reason: str | None = None
    privacy: PrivacySpent | None = None
    updates: int = 0
    staleness: int = 0
    norm_l2: float | None = None


def parts_of(
    records: Mapping[str, SiteRecord],
    before: Mapping[str, SiteRecord] = MappingProxyType({}),
    parts: Mapping[str, Part] = MappingProxyType({}),
) -> dict[str, Part]:
    """Return every site's part in a phase of a sync round.

    `parts` are those of `before`: what an event left as it was is not made again.
    """
    return {
        site: parts[site] if site in parts and before.get(site) is record else _part(record)
        for site, record in records.items()
    }


def _part(record: SiteRecord) -> Part:
    if record.answer is not None:
        return _given((record.answer,), 0)
    if record.status == "asked":
        return Part(status="asked")
    if record.status == "not_selected":
        return Part(status="not_selected", reason="not selected for this round")
    return _missing(_STATUS[record.status], record.code, record.detail)


def _missing(status: PartStatus, code: str, detail: str = "") -> Part:
    reason = REFUSALS[code] + (f" ({detail})" if detail else "")
    return Part(status=status, code=code, reason=reason)


def _given(answers: tuple[ReplyAccepted, ...], staleness: int) -> Part:
    updates = [answer.update for answer in answers]
    counts = [update.examples for update in updates if update.examples is not None]
    return Part(
        status="took_part",
        examples=sum(counts) if counts else None,
        seconds=sum(update.seconds for update in updates),
        privacy=updates[-1].privacy,
        updates=len(answers),
        staleness=staleness,
        norm_l2=max((a.norm_l2 for a in answers if a.norm_l2 is not None), default=None),
    )


def norm_ratios(parts: Mapping[str, Part]) -> dict[str, float]:
    """Return each update's norm over the median of the round's: shown, and used for nothing.

    Whether an update is taken never depends on the others (contracts/update_norms.py).
    """
    norms = {site: part.norm_l2 for site, part in parts.items() if part.norm_l2 is not None}
    middle = median(norms.values()) if norms else 0.0
    return {site: norm / middle for site, norm in norms.items()} if middle > 0 else {}


def async_parts(state: RunState, number: int, entered: tuple[Waiting, ...]) -> dict[str, Part]:
    """Return every site's part in model `number` of an async run: `entered` are its updates."""
    assert state.plan is not None
    busy = {order.site for order in state.async_.under_way}
    found: dict[str, Part] = {}
    for site in state.plan.terms.sites:
        own = [update for update in entered if update.answer.site == site]
        if own:
            staleness = max(number - 1 - update.version for update in own)
            found[site] = _given(tuple(update.answer for update in own), staleness)
        elif site in state.left:
            found[site] = _missing("refused", state.left[site])
        elif site in state.async_.out:
            silent = state.async_.out[site] in ("offline", "no_answer")
            status: PartStatus = "no_answer" if silent else "refused"
            found[site] = _missing(
                status, state.async_.out[site], state.async_.out_detail.get(site, "")
            )
        elif site in state.offline and site not in busy:
            found[site] = _missing("no_answer", "offline")
        else:
            found[site] = Part(status="under_way", reason="its update came later")
    return found
