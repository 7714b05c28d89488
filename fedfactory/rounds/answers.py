"""What answers and deadlines do in a sync run, and when a phase closes."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from fedfactory.contracts.orders import WorkKind
from fedfactory.rounds.asking import (
    again,
    bound,
    check_past,
    has_quorum,
    may_recover,
    open_kind,
    plan_of,
    why_no_quorum,
    with_records,
)
from fedfactory.rounds.ending import Step, finish
from fedfactory.rounds.events import (
    Aggregate,
    DeadlinePassed,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    SiteLeft,
    Taken,
)
from fedfactory.rounds.finishing import close_evaluation
from fedfactory.rounds.selection import passes
from fedfactory.rounds.state import LateAnswer, MachineError, RunState, SiteRecord, SiteStatus

Answer = ReplyAccepted | ReplyRefused


def orders_sent(state: RunState, event: OrdersSent) -> Step:
    """Note whom the orders reached. Sites left out of the first sending are not awaited."""
    kind = open_kind(state)
    if (event.round, event.kind) != (state.round, kind):
        return orders_sent_for_closed_phase(state, event)
    if strangers := set(event.sites) - set(plan_of(state).terms.sites):
        raise MachineError(state, event, f"not sites of the plan: {sorted(strangers)}")
    first = not state.sync.reached
    state = state.with_sync(reached=state.sync.reached | set(event.sites))
    if not first:
        return state, ()
    left_out = set(state.sites(kind, "asked")) - set(event.sites)
    records = {site: SiteRecord(status="not_selected") for site in left_out}
    return close_if_answered(with_records(state, kind, records), event.at)


def orders_sent_for_closed_phase(state: RunState, event: OrdersSent) -> Step:
    """Orders may be reported sent after their phase closed; those of the future may not."""
    check_past(state, event, event.round, event.kind)
    return state, ()


# ---- answers --------------------------------------------------------------------------------


def reply_too_late(state: RunState, event: Answer) -> Step:
    """Note an answer that counts for nothing: a second one, or one for a closed phase."""
    check_past(state, event, event.round, event.kind)
    if event.site not in plan_of(state).terms.sites:
        raise MachineError(state, event, "not a site of the plan")
    answered = (
        event.round == state.round
        and (record := state.records(event.kind).get(event.site)) is not None
        and record.status in ("accepted", "refused")
    )
    return noted(state, event, "duplicate" if answered else "late"), ()


def noted(state: RunState, event: Answer, why: Literal["duplicate", "late"]) -> RunState:
    """Return the state with an answer noted that counts for nothing.

    A site that is asked again while its reply is under way gives it twice ("repeated").
    """
    repeats = isinstance(event, ReplyAccepted) and _is_in(state, event)
    late = LateAnswer(at=event.at, round=event.round, kind=event.kind, site=event.site, why=why)
    return replace(state, late=(*state.late, late), outcome="repeated" if repeats else why)


def _is_in(state: RunState, event: ReplyAccepted) -> bool:
    waiting = (update.answer for update in state.async_.waiting)
    known = (*state.answers("train"), *state.answers("evaluate"), *waiting)
    return any(found.site == event.site and replace(found, at=event.at) == event for found in known)


def reply_accepted(state: RunState, event: ReplyAccepted) -> Step:
    """Count an update or evaluation, once."""
    if not state.awaits(event.round, event.kind, event.site):
        return reply_too_late(state, event)
    record = SiteRecord(status="accepted", answer=event, at=event.at)
    state = known_from(with_records(state, event.kind, {event.site: record}), event)
    return close_if_answered(replace(state, outcome="counted"), event.at)


def known_from(state: RunState, event: ReplyAccepted) -> RunState:
    """Return the state with what a training answer tells of its site."""
    if event.kind != "train":
        return state
    if (examples := event.update.examples) is not None:
        state = replace(state, examples={**state.examples, event.site: examples})
    return replace(state, gave={**state.gave, event.site: state.gave.get(event.site, 0) + 1})


def reply_refused(state: RunState, event: ReplyRefused) -> Step:
    """Ask again after a failure that passes, a few times; else it is the site's word for now."""
    if not state.awaits(event.round, event.kind, event.site):
        return reply_too_late(state, event)
    plan, tries = plan_of(state), state.records(event.kind)[event.site].tries
    if passes(event.code, plan.terms.privacy) and tries < plan.rules.retries:
        record = SiteRecord(status="asked", code=event.code, detail=event.detail, tries=tries + 1)
        state = with_records(state, event.kind, {event.site: record})
        return replace(state, outcome="refused"), again(state, event.kind, (event.site,))
    record = SiteRecord(
        status="refused", code=event.code, detail=event.detail, tries=tries, at=event.at
    )
    state = with_records(state, event.kind, {event.site: record})
    recovers = event.kind == "train" and may_recover(state, event.site)
    state = replace(state, outcome="refused" if recovers else "gave_up")
    return close_if_answered(state, event.at)


def site_left_while_asked(state: RunState, event: SiteLeft) -> Step:
    """Await a site no longer that will not come back; an update of it that is in stays in."""
    kind = open_kind(state)
    state = replace(state, left={**state.left, event.site: event.code})
    record = state.records(kind).get(event.site)
    if record is None or record.status in ("accepted", "not_selected"):
        return state, ()
    gone = SiteRecord(status="refused", code=event.code, at=event.at)
    return close_if_answered(with_records(state, kind, {event.site: gone}), event.at)


# ---- deadlines ------------------------------------------------------------------------------


def deadline_passed(state: RunState, event: DeadlinePassed) -> Step:
    """Stop waiting, wait a little longer for the quorum, or ask anew; else the run fails."""
    kind = open_kind(state)
    if (event.round, event.kind) != (state.round, kind):
        return deadline_of_closed_phase(state, event)
    if kind == "evaluate":
        return close_evaluation(_give_up(state, kind, event.at, "no_answer"), event.at)
    if has_quorum(state):
        return _aggregate(_give_up(state, kind, event.at, "no_answer"))
    rules = plan_of(state).rules
    if not state.sync.overtime and rules.lateness_s > 0 and state.sites(kind, "asked"):
        state = state.with_sync(overtime=True)
        return state, (bound(state, kind),)
    if state.sync.attempt < rules.retries:
        return _begin_anew(state)
    state = _give_up(state, kind, event.at, "no_answer")
    return finish(state, "failed", why_no_quorum(state) or "")


def _begin_anew(state: RunState) -> Step:
    """Ask once more those who are silent and those whose failure passes; what is in stays in."""
    revived = {
        site: replace(record, status="asked", tries=0)
        for site, record in state.sync.train.items()
        if may_recover(state, site)
    }
    state = with_records(state, "train", revived)
    state = state.with_sync(attempt=state.sync.attempt + 1, overtime=False)
    sites = [site for site in state.sites("train", "asked") if site in state.sync.reached]
    return state, (*again(state, "train", sites), bound(state, "train"))


def deadline_of_closed_phase(state: RunState, event: DeadlinePassed) -> Step:
    """A timer may ring after its phase closed by itself."""
    check_past(state, event, event.round, event.kind)
    return state, ()


# ---- phases close ---------------------------------------------------------------------------


def close_if_answered(state: RunState, at: float) -> Step:
    """Close the open phase if it has what it waits for."""
    if state.phase == "evaluating":
        return close_evaluation(state, at)
    return _close_training(state, at)


def _close_training(state: RunState, at: float) -> Step:
    """Aggregate once nobody is awaited, or enough are in; fail when no quorum can come about.

    Sites that are away are not awaited if the others suffice.
    """
    if reason := why_no_quorum(state):
        return finish(state, "failed", reason)
    if not has_quorum(state):
        return state, ()
    per_round = plan_of(state).rules.per_round
    if per_round is not None and len(state.sites("train", "accepted")) >= per_round:
        return _aggregate(_give_up(state, "train", at, "not_needed"))
    if state.sync.overtime or not set(state.sites("train", "asked")) - state.sync.away:
        return _aggregate(_give_up(state, "train", at, "no_answer"))
    return state, ()


def _give_up(state: RunState, kind: WorkKind, at: float, status: SiteStatus) -> RunState:
    """Await nobody any more: who has not answered is named as silent, away or not needed."""
    records: dict[str, SiteRecord] = {}
    for site in state.sites(kind, "asked"):
        code = "offline" if site in state.offline else "no_answer"
        if status == "not_needed":
            code = "not_needed"
        records[site] = replace(state.records(kind)[site], status=status, code=code, at=at)
    return with_records(state, kind, records)


def _aggregate(state: RunState) -> Step:
    accepted = state.sites("train", "accepted")
    missed = dict(state.missed)
    for site, record in state.sync.train.items():
        if record.status in ("refused", "no_answer"):
            missed[site] = missed.get(site, 0) + 1
    taking = tuple(Taken(site=s, order_round=state.round, staleness=0) for s in accepted)
    state = replace(state, phase="aggregating", missed=missed, taking=taking)
    return state, (aggregate(state),)


def aggregate(state: RunState) -> Aggregate:
    """Return the aggregate under way."""
    return Aggregate(round=state.round, updates=state.taking)
