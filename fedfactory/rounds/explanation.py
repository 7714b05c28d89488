"""Why a site did or did not contribute to a round: one sentence with its evidence. Pure.

Evidence are the numbers of the journal's events (from 0) that the sentence rests on. In async mode
a round is a model, and a site's orders are named by their own count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import Event, ReplyRefused
from fedfactory.rounds.evidence import Facts, Reading, Seen
from fedfactory.rounds.history import History, Round, append
from fedfactory.rounds.parts import NOT_MISSED, Part, norm_ratios

# Said by the coordinator of what a site sent, and by the site of its own worker.
REJECTED: Final = ("bad_reply", "bad_update_form", "bad_update_values", "bad_update_norm")
UNUSUAL: Final = 2.0  # from which ratio on a norm is told; nothing follows from it
CRASHED: Final = ("worker_lost", "timed_out", "work_failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What became of one site in one round. `evidence` are numbers of events, ascending."""

    site: str
    round: int
    contributed: bool
    sentence: str
    evidence: tuple[int, ...]


def explain(
    events: Iterable[Event],
    site: str | None,
    round: int | None,  # noqa: A002
) -> tuple[Explained, ...]:
    """Explain one site or all (None) in one round or in every one (None), by round, then site."""
    reading = Reading.of(events)
    history, plan = reading.history, reading.history.plan
    if plan is None:
        return ()
    rounds = (*history.rounds, history.current) if history.current else history.rounds
    return tuple(
        _explained(reading, plan, found, name)
        for found in rounds
        if round in (None, found.number)
        for name in plan.terms.sites
        if site in (None, name)
    )


def explain_evaluations(
    events: Iterable[Event],
    site: str | None,
    round: int | None,  # noqa: A002
) -> tuple[Explained, ...]:
    """Explain the evaluations that a site owed in a finished round and did not give.

    See `explain` for the arguments and the order.
    """
    history, refusals = History.new(), dict[tuple[int, str], list[int]]()
    for number, event in enumerate(events):
        history = append(history, event)
        if isinstance(event, ReplyRefused) and event.kind == "evaluate":
            refusals.setdefault((event.round, event.site), []).append(number)
    if history.plan is None:
        return ()
    unit = _unit(history.plan)
    return tuple(
        Explained(
            site=name,
            round=found.number,
            contributed=False,
            sentence=f"{name}, {unit} {found.number}: did not evaluate: {_unevaluated(part)}",
            evidence=tuple(refusals.get((found.number, name), ())),
        )
        for found in history.rounds
        if round in (None, found.number)
        for name, part in sorted((found.evaluations or {}).items())
        if site in (None, name) and part.status not in NOT_MISSED
    )


def _unevaluated(part: Part) -> str:
    if part.status == "refused":
        return f"{_how(part.code)} {part.code}: {part.reason}"
    code = f" ({part.code})" if part.code else ""
    return f"no answer: {part.reason or 'the phase ended before it'}{code}"


def _explained(reading: Reading, plan: RunPlan, found: Round, site: str) -> Explained:
    part = found.parts.get(site, Part(status="asked"))
    facts = reading.facts(found.number, site)
    sentence, evidence = _sentence(reading, plan, found.number, part, facts)
    ratio = norm_ratios(found.parts).get(site, 1.0)
    if not 1 / UNUSUAL < ratio < UNUSUAL:
        sentence += f"; its norm is {ratio:.3g} x the round's median"
    numbers = sorted({seen.number for seen in evidence if seen is not None})
    return Explained(
        site=site,
        round=found.number,
        contributed=part.status == "took_part",
        sentence=f"{site}, {_unit(plan)} {found.number}: {sentence}",
        evidence=tuple(numbers),
    )


def _unit(plan: RunPlan) -> str:
    return "model" if plan.is_async else "round"


Said = tuple[str, list[Seen | None]]


def _sentence(reading: Reading, plan: RunPlan, number: int, part: Part, facts: Facts) -> Said:
    closed = reading.closed.get(number)
    if part.status == "took_part":
        return _contributed(part), [facts.sent, facts.answer]
    if part.status in ("not_selected", "not_needed"):
        needless = "not needed: enough others had answered before it"
        told = needless if part.status == "not_needed" else _not_selected(plan)
        return told, [facts.sent, closed]
    if part.status == "refused":
        return _refused(part, facts)
    if part.status == "no_answer":
        return _silent(part, facts, closed)
    if part.status == "under_way":
        return _under_way(plan, facts, closed)
    return _unanswered(reading, plan, facts)


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
    of = f"{asked} of {len(plan.terms.sites)} sites"
    return f"not selected: rounds.select={plan.rules.select} took {of}"


def _refused(part: Part, facts: Facts) -> Said:
    """Tell a refusal by what lay behind it, with its code: the clause that said no."""
    if facts.left is not None and not facts.refused:
        return f"cut off since {_time(facts.left)}: {part.reason} ({part.code})", [facts.left]
    tries = f", asked {len(facts.refused)} times" if len(facts.refused) > 1 else ""
    return f"{_how(part.code)} {part.code}: {part.reason}{tries}", [facts.sent, *facts.refused]


def _how(code: str) -> str:
    if code in REJECTED:
        return "rejected because of"
    return "crashed with" if code in CRASHED else "refused by"


def _silent(part: Part, facts: Facts, closed: Seen | None) -> Said:
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


def _under_way(plan: RunPlan, facts: Facts, closed: Seen | None) -> Said:
    if facts.late is not None and facts.late_code is None:
        return "late: its order had been given up when the update came", [facts.late]
    if facts.offline is not None:
        told = f"offline since {_time(facts.offline)}, and its order not answered"
        return told, [facts.sent, facts.offline, closed]
    if facts.answer is not None:
        return "its update is in, and goes into a later model", [facts.answer, closed]
    if facts.sent is None or closed is None:
        return "no order of it was out when the model was made", [closed]
    told = f"still at work{_waiting(plan, facts.sent, closed.at)}"
    return f"{told}: its update goes into a later model", [facts.sent, closed]


def _unanswered(reading: Reading, plan: RunPlan, facts: Facts) -> Said:
    ended = reading.history.state.ended
    if facts.offline is not None:
        return f"offline since {_time(facts.offline)}", [facts.offline]
    if ended is not None:
        why = f"the run {ended.status} before it answered ({ended.reason})"
        return why.replace("run stopped", "run was stopped"), [facts.sent, reading.last]
    if facts.sent is None:
        return "queued: its order has not gone out yet", []
    waiting = _waiting(plan, facts.sent, reading.last.at)
    return f"still awaited{waiting}", [facts.sent]


def _waiting(plan: RunPlan, sent: Seen, until: float) -> str:
    """Tell since when an order is out, and whether that is too long at the time `until`."""
    overdue = until - sent.at > plan.rules.deadline_s
    late = f", beyond its deadline of {plan.rules.deadline_s:g} s" if overdue else ""
    return f" on its order of {_time(sent)}{late}"


def _time(seen: Seen) -> str:
    """Return an event's time in words."""
    return f"{datetime.fromtimestamp(int(seen.at), UTC):%Y-%m-%d %H:%M:%S} UTC"
