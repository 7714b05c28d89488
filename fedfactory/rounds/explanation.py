"""Why a site did or did not contribute to a round: one sentence with its evidence. Pure.

Evidence are the numbers of the journal's events (from 0) that the sentence rests on. In async mode
a round is a model, and a site's orders are named by their own count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import (
    DeadlinePassed,
    Event,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunReopened,
    RunResumed,
    RunStarted,
    SiteConnected,
    SiteLeft,
    SiteLost,
    StopRequested,
)
from fedfactory.rounds.history import History, Round, append
from fedfactory.rounds.parts import Part

# Said by the coordinator of what a site sent, and by the site of its own worker.
REJECTED: Final = ("bad_reply", "bad_update_form", "bad_update_values")
CRASHED: Final = ("worker_lost", "timed_out", "work_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What became of one site in one round. `evidence` are numbers of events, ascending."""

    site: str
    round: int
    contributed: bool
    sentence: str
    evidence: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Seen:
    """An event and its number."""

    number: int
    at: float


@dataclass(slots=True)
class _Facts:
    """What is gathered of one site in one round."""

    offline: _Seen | None = None
    left: _Seen | None = None
    sent: _Seen | None = None
    answer: _Seen | None = None
    refused: list[_Seen] = field(default_factory=list)
    late: _Seen | None = None
    late_code: str | None = None  # of a refusal that came late

    def come_late(self, seen: _Seen, code: str | None) -> None:
        if self.late is None:
            self.late, self.late_code = seen, code


@dataclass(slots=True)
class _Reading:
    """The journal as read so far."""

    history: History = field(default_factory=History.new)
    facts: dict[tuple[int, str], _Facts] = field(default_factory=dict)
    closed: dict[int, _Seen] = field(default_factory=dict)
    offline: dict[str, _Seen] = field(default_factory=dict)
    left: dict[str, _Seen] = field(default_factory=dict)
    last: _Seen = field(default_factory=lambda: _Seen(0, 0.0))

    def of(self, number: int, site: str) -> _Facts:
        return self.facts.setdefault((number, site), _Facts())


def explain(
    events: Iterable[Event],
    site: str | None,
    round: int | None,  # noqa: A002
) -> tuple[Explained, ...]:
    """Explain one site or all (None) in one round or in every one (None), by round, then site."""
    reading = _Reading()
    for number, event in enumerate(events):
        _read(reading, _Seen(number, event.at), event)
    history, plan = reading.history, reading.history.plan
    if plan is None:
        return ()
    rounds = (*history.rounds, history.current) if history.current else history.rounds
    return tuple(
        _explained(reading, plan, found, name)
        for found in rounds
        if round in (None, found.number)
        for name in plan.sites
        if site in (None, name)
    )


# ---- reading --------------------------------------------------------------------------------


def _read(reading: _Reading, seen: _Seen, event: Event) -> None:
    before = reading.history.state
    reading.history = append(reading.history, event)
    if before.phase == "done" and not isinstance(event, RunReopened):
        return
    reading.last = seen
    _read_presence(reading, seen, event)
    state = reading.history.state
    if isinstance(event, OrdersSent) and event.kind == "train":
        for site in event.sites:
            facts = reading.of(_number(before.round, event, state.plan), site)
            facts.sent = facts.sent or seen
    elif isinstance(event, ReplyAccepted | ReplyRefused) and event.kind == "train":
        facts = reading.of(_number(before.round, event, state.plan), event.site)
        if not before.awaits(event.round, "train", event.site):
            facts.come_late(seen, getattr(event, "code", None))
        elif isinstance(event, ReplyRefused):
            facts.refused.append(seen)
        else:
            facts.answer = seen
    elif isinstance(event, ModelAggregated):
        reading.closed.setdefault(event.round, seen)
    if before.phase == "training" and state.phase != "training":
        reading.closed[before.round] = seen
    if isinstance(event, ModelAggregated | DeadlinePassed | StopRequested) or (
        state.phase == "done" or state.round != before.round
    ):
        _mark_absences(reading, before.round)


def _number(current: int, event: OrdersSent | ReplyAccepted | ReplyRefused, plan: object) -> int:
    """Return the round that an event belongs to; in async mode the model under way."""
    asynchronous = isinstance(plan, RunPlan) and plan.rules.mode == "async"
    return current if asynchronous else event.round


def _read_presence(reading: _Reading, seen: _Seen, event: Event) -> None:
    match event:
        case RunStarted(plan=plan, connected=connected):
            reading.offline = {s: seen for s in plan.sites if s not in connected}
        case RunResumed(connected=connected):
            resumed = reading.history.plan
            sites = resumed.sites if resumed is not None else ()
            reading.offline = {
                site: reading.offline.get(site, seen) for site in sites if site not in connected
            }
        case SiteConnected(site=site):
            reading.offline.pop(site, None)
        case SiteLost(site=site):
            reading.offline.setdefault(site, seen)
        case SiteLeft(site=site):
            reading.left.setdefault(site, seen)


def _mark_absences(reading: _Reading, number: int) -> None:
    """Note, while a round's training closes, who is away since when."""
    for site, seen in reading.offline.items():
        facts = reading.of(number, site)
        facts.offline = facts.offline or seen
    for site, seen in reading.left.items():
        facts = reading.of(number, site)
        facts.left = facts.left or seen


# ---- saying ---------------------------------------------------------------------------------


def _explained(reading: _Reading, plan: RunPlan, found: Round, site: str) -> Explained:
    part = found.parts.get(site, Part(status="asked"))
    facts = reading.facts.get((found.number, site), _Facts())
    if found is reading.history.current:
        facts.offline = facts.offline or reading.offline.get(site)
        facts.left = facts.left or reading.left.get(site)
    sentence, evidence = _sentence(reading, plan, found.number, part, facts)
    numbers = sorted({seen.number for seen in evidence if seen is not None})
    return Explained(
        site=site,
        round=found.number,
        contributed=part.status == "took_part",
        sentence=f"{site}, {_unit(plan)} {found.number}: {sentence}",
        evidence=tuple(numbers),
    )


def _unit(plan: RunPlan) -> str:
    return "model" if plan.rules.mode == "async" else "round"


Said = tuple[str, list[_Seen | None]]


def _sentence(reading: _Reading, plan: RunPlan, number: int, part: Part, facts: _Facts) -> Said:
    closed = reading.closed.get(number)
    if part.status == "took_part":
        return _contributed(part), [facts.sent, facts.answer, closed]
    if part.status in ("not_selected", "not_needed"):
        needless = "not needed: enough others had answered before it"
        told = needless if part.status == "not_needed" else _not_selected(plan)
        return told, [facts.sent, closed]
    if part.status == "refused":
        return _refused(part, facts)
    if part.status == "no_answer":
        return _silent(part, facts, closed)
    if part.status == "under_way":
        return _under_way(facts, closed)
    return _unanswered(reading, facts)


def _contributed(part: Part) -> str:
    count = "its update" if part.updates <= 1 else f"{part.updates} updates of it"
    examples = "" if part.examples is None else f" ({part.examples} examples)"
    old = "1 model" if part.staleness == 1 else f"{part.staleness} models"
    stale = f" that was {old} behind" if part.staleness else ""
    return f"contributed: {count}{examples}{stale} went into the model"


def _not_selected(plan: RunPlan) -> str:
    if plan.rules.select == "all":
        return "not asked: the strategy did not choose it"
    asked = (plan.rules.per_round or 0) + plan.rules.extra
    return (
        f"not selected: rounds.select={plan.rules.select} took {asked} of {len(plan.sites)} sites"
    )


def _refused(part: Part, facts: _Facts) -> Said:
    """Tell a refusal by what lay behind it, with its code: the clause that said no."""
    if facts.left is not None and not facts.refused:
        return f"cut off since {_time(facts.left)}: {part.reason} ({part.code})", [facts.left]
    tries = f", asked {len(facts.refused)} times" if len(facts.refused) > 1 else ""
    how = "refused by"
    if part.code in REJECTED:
        how = "rejected because of"
    elif part.code in CRASHED:
        how = "crashed with"
    return f"{how} {part.code}: {part.reason}{tries}", [facts.sent, *facts.refused]


def _silent(part: Part, facts: _Facts, closed: _Seen | None) -> Said:
    if facts.late is not None and closed is not None:
        late_s = facts.late.at - closed.at
        told = f"late by {late_s:.1f} s: the round had closed"
        if facts.late_code is not None:
            told = f"no answer before the round closed; {late_s:.1f} s later came {facts.late_code}"
        return told, [facts.sent, closed, facts.late]
    if part.code == "offline" and facts.offline is not None:
        return (
            f"offline since {_time(facts.offline)}, and not back before the round closed",
            [facts.offline, closed],
        )
    if facts.sent is None:
        return f"not asked: its order never went out ({part.reason})", [closed]
    waited = f" in {closed.at - facts.sent.at:.0f} s" if closed is not None else ""
    told = f"connected, but no answer{waited} after its order of {_time(facts.sent)}"
    return f"queued or still at work: {told}", [facts.sent, *facts.refused, closed]


def _under_way(facts: _Facts, closed: _Seen | None) -> Said:
    if facts.late is not None and facts.late_code is None:
        return "late: its order had been given up when the update came", [facts.late]
    return "still at work: its next update goes into a later model", [facts.sent, closed]


def _unanswered(reading: _Reading, facts: _Facts) -> Said:
    ended = reading.history.state.ended
    if facts.offline is not None:
        return f"offline since {_time(facts.offline)}", [facts.offline]
    if ended is not None:
        why = f"the run {ended.status} before it answered ({ended.reason})"
        return why.replace("run stopped", "run was stopped"), [facts.sent, reading.last]
    if facts.sent is None:
        return "queued: its order has not gone out yet", []
    return f"still awaited: its order went out at {_time(facts.sent)}", [facts.sent]


def _time(seen: _Seen) -> str:
    """Return an event's time in words: Unix days as a date (Hinnant, days_from_civil inverted)."""
    days, second = divmod(int(seen.at), 86_400)
    era, day = divmod(days + 719_468, 146_097)  # eras of 400 years that begin on 1 March 0000
    of_era = (day - day // 1460 + day // 36_524 - day // 146_096) // 365
    of_year = day - (365 * of_era + of_era // 4 - of_era // 100)
    march = (5 * of_year + 2) // 153  # months since March
    month = march + 3 if march < 10 else march - 9
    year = era * 400 + of_era + (month <= 2)
    date = f"{year:04}-{month:02}-{of_year - (153 * march + 2) // 5 + 1:02}"
    return f"{date} {second // 3600:02}:{second // 60 % 60:02}:{second % 60:02} UTC"
