"""How a run is taken up where its journal stands: after a crash, a loss, or its own end.

Whatever had been asked for and may not have been done is asked for again; every command may be
performed twice. Losses are told before RunResumed, whose commands stand for all before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedfactory.rounds.answers import aggregate, close_if_answered
from fedfactory.rounds.asking import again, begin_round, bound, open_kind, plan_of, with_records
from fedfactory.rounds.ending import Step, complete
from fedfactory.rounds.events import (
    AggregateMetrics,
    CheckpointLost,
    Command,
    RecordRound,
    RunReopened,
    RunResumed,
    RunStarted,
    UpdateLost,
    UpdateRefused,
)
from fedfactory.rounds.finishing import measure, next_round
from fedfactory.rounds.keeping import needed, with_stored
from fedfactory.rounds.serving import go_on, send_again, sendings, serve
from fedfactory.rounds.state import (
    Finished,
    Judgement,
    MachineError,
    RunState,
    SiteRecord,
    UnderWay,
    Waiting,
)


def start(state: RunState, event: RunStarted) -> Step:
    """Begin the first round."""
    plan = event.plan
    initial = Finished(
        round=0, model=plan.terms.initial, state=None, judgement=Judgement(), took_part=frozenset(),
        planned=(), evaluated=(), entered=(),
    )  # fmt: skip
    state = replace(
        state,
        plan=plan,
        model=plan.terms.initial,
        finished=(initial,),
        stored=with_stored((), plan.terms.initial),
        offline=frozenset(plan.terms.sites) - set(event.connected),
    )
    return next_round(state, event.at)


def resume(state: RunState, event: RunResumed) -> Step:
    """Ask again for whatever the run waits for."""
    plan = plan_of(state)
    state = replace(state, offline=frozenset(plan.terms.sites) - set(event.connected))
    record = _record_again(state)
    if state.phase in ("serving", "merging"):
        state, commands = _resume_async(state, event.at)
    elif state.phase in ("training", "evaluating"):
        state, commands = _resume_asking(state)
    else:
        commands = _outstanding(state)
    return state, (*record, *commands)


def _record_again(state: RunState) -> tuple[RecordRound, ...]:
    """Return the last RecordRound: its effect may be missing. What is needed now is not dropped."""
    if state.recorded is None:
        return ()
    keep = needed(state)
    drop = tuple(ref for ref in state.recorded.drop if ref.digest not in keep)
    return (replace(state.recorded, drop=drop),)


def _outstanding(state: RunState) -> tuple[Command, ...]:
    """Return what a phase without orders waits for."""
    if state.phase == "done":
        assert state.ended is not None
        return (state.ended,)
    if state.phase == "aggregating" or (state.phase == "merging" and not state.awaits_central):
        return (aggregate(state),)
    commands: tuple[Command, ...] = ()
    if state.awaits_metrics:
        commands = (AggregateMetrics(round=state.round, sites=state.sites("evaluate", "accepted")),)
    return (*commands, measure(state)) if state.awaits_central else commands


def _resume_asking(state: RunState) -> Step:
    """Send orders again to all who are awaited; the first sending again if it was never told of."""
    kind = open_kind(state)
    awaited = state.sites(kind, "asked")
    state = state.with_sync(away=state.sync.away & state.offline)
    orders: tuple[Command, ...]
    if state.sync.reached:
        orders = again(state, kind, (site for site in awaited if site in state.sync.reached))
    else:
        orders = (state.planned[-1],)
    central = (measure(state),) if state.awaits_central else ()
    return state, (*orders, bound(state, kind), *central)


def _resume_async(state: RunState, at: float) -> Step:
    unsent = tuple(order for order in state.async_.under_way if not order.sent)
    sent = tuple(order for order in state.async_.under_way if order.sent)
    state = state.with_async(armed_for=None, idle_until=None, out={})
    state, commands = send_again(state, sent, at)
    commands = (*sendings(unsent, again=False), *commands)
    if state.phase == "merging":
        return state, (*commands, *_outstanding(state))
    state, more = go_on(state, at)
    return state, (*commands, *more)


def reopen(state: RunState, event: RunReopened) -> Step:
    """Go on after the last finished round; what was in for the one under way is gone."""
    assert state.ended is not None
    if state.ended.status == "completed":
        raise MachineError(state, event, "the run is completed")
    last = state.finished[-1]
    state = replace(state.with_async(out={}), ended=None, stopping=None, left={})
    if last.round == plan_of(state).terms.rounds:
        return complete(_fallen_back(state, last), "every round is finished")
    if plan_of(state).is_async:
        state = _with_asked_anew(state, last, state.async_.waiting, event.at)
        state = state.with_async(waiting=())
    state = _fallen_back(state, last)
    return next_round(state, event.at)


def _fallen_back(state: RunState, to: Finished) -> RunState:
    """Return the state as it was when this round had finished. Sites stay as they are."""
    return replace(
        state,
        model=to.model,
        version=to.round,
        strategy_state=to.state,
        took_part=to.took_part,
        planned=to.planned,
        evaluated=to.evaluated,
        finished=tuple(found for found in state.finished if found.round <= to.round),
    )


def checkpoint_lost(state: RunState, event: CheckpointLost) -> Step:
    """Fall back to a finished round, and do what came after it again."""
    found = next((f for f in state.finished if f.round == event.round), None)
    if found is None:
        kept = [f.round for f in state.finished]
        raise MachineError(state, event, f"only rounds {kept} can be fallen back to")
    if not plan_of(state).is_async:
        return begin_round(_fallen_back(state, found), event.round + 1)
    state = _fallen_back(_with_asked_anew(state, found, (), event.at), found)
    waiting = tuple(w for w in state.async_.waiting if w.version <= event.round)
    sent = [order for order in state.async_.under_way if order.sent]
    state, commands = send_again(state.with_async(waiting=waiting), sent, event.at)
    state, more = serve(state, event.round + 1, event.at)
    return state, (*commands, *more)


def _with_asked_anew(state: RunState, to: Finished, lost: Iterable[Waiting], at: float) -> RunState:
    """Return an async run about to fall back with the orders whose updates it needs (again).

    A site gets so many orders as the run has models, and answers one that it has fulfilled without
    new work. So the updates in the models that are given up are asked for again, as are those
    `lost`. An order from a model that is given up is in vain, and used up if it went out.
    """
    given_up = (f.entered for f in state.finished if f.round > to.round)
    lost = (*lost, *state.async_.entered, *(update for entered in given_up for update in entered))
    stored = {ref.digest for ref in state.stored}
    again = {
        (update.answer.site, update.answer.round): _order_again(update, at)
        for update in lost
        if update not in to.entered and update.model.digest in stored
    }
    orders = (*state.async_.under_way, *again.values())
    in_vain = [o for o in orders if o.version > to.round or o.site in state.left]
    unused = {order.site: order.number - 1 for order in in_vain if not order.sent}
    return state.with_async(
        given={**state.async_.given, **unused},
        under_way=tuple(order for order in orders if order not in in_vain),
        entered=to.entered,
        armed_for=None,
        idle_until=None,
    )


def _order_again(lost: Waiting, at: float) -> UnderWay:
    """Return the order that a lost update fulfilled, to be sent again at `at` (Unix seconds)."""
    return UnderWay(
        site=lost.answer.site, number=lost.answer.round, model=lost.model, version=lost.version,
        due_at=at, sent=True, tries=0,
    )  # fmt: skip


def update_lost(state: RunState, event: UpdateLost) -> Step:
    """Ask a site again for an update that the round under way needs and can no longer read."""
    record = state.sync.train.get(event.site)
    if event.round != state.round or record is None or record.status != "accepted":
        return replace(state, outcome="ignored"), ()
    state = state.with_sync(reached=state.sync.reached | {event.site})
    state = replace(state, phase="training", taking=())
    if code := state.left.get(event.site):
        gone = SiteRecord(status="refused", code=code, at=event.at)
        return close_if_answered(with_records(state, "train", {event.site: gone}), event.at)
    state = with_records(state, "train", {event.site: SiteRecord(status="asked")})
    return state, (*again(state, "train", (event.site,)), bound(state, "train"))


def update_refused(state: RunState, event: UpdateRefused) -> Step:
    """Turn an accepted update that could not be folded into its site's refusal, and close anew."""
    record = state.sync.train.get(event.site)
    if event.round != state.round or record is None or record.status != "accepted":
        return replace(state, outcome="ignored"), ()
    state = replace(state, phase="training", taking=())
    refused = replace(
        record, status="refused", code=event.code, detail=event.detail, answer=None, at=event.at
    )
    state = with_records(state, "train", {event.site: refused})
    state, commands = close_if_answered(state, event.at)
    return state, commands or (bound(state, "train"),)


def update_lost_async(state: RunState, event: UpdateLost) -> Step:
    """Ask a site again for an update that was in no model yet and can no longer be read."""
    key = (event.site, event.round)
    lost = next((w for w in state.async_.waiting if (w.answer.site, w.answer.round) == key), None)
    if lost is None:
        return replace(state, outcome="ignored"), ()
    order = _order_again(lost, event.at)
    retaken = any((taken.site, taken.order_round) == key for taken in state.taking)
    state = replace(
        state.with_async(
            waiting=tuple(w for w in state.async_.waiting if w is not lost),
            under_way=(*state.async_.under_way, order),
        ),
        phase="serving" if retaken else state.phase,
        taking=() if retaken else state.taking,
    )
    if event.site in state.left:
        return go_on(state.with_async(under_way=state.async_.under_way[:-1]), event.at)
    state, commands = send_again(state, (order,), event.at)
    state, more = go_on(state, event.at)
    return state, (*commands, *more)


def update_refused_async(state: RunState, event: UpdateRefused) -> Step:
    """Drop an update that could not be folded; its site is left alone until it reconnects."""
    key = (event.site, event.round)
    found = next((w for w in state.async_.waiting if (w.answer.site, w.answer.round) == key), None)
    if found is None:
        return replace(state, outcome="ignored"), ()
    retaken = any((taken.site, taken.order_round) == key for taken in state.taking)
    state = replace(
        state.with_async(
            waiting=tuple(w for w in state.async_.waiting if w is not found),
            out={**state.async_.out, event.site: event.code},
            out_detail={**state.async_.out_detail, event.site: event.detail},
        ),
        missed={**state.missed, event.site: state.missed.get(event.site, 0) + 1},
        phase="serving" if retaken else state.phase,
        taking=() if retaken else state.taking,
    )
    return go_on(state, event.at)
