"""What answers, deadlines and sites that come and go do while an async run makes models."""

from __future__ import annotations

from dataclasses import replace

from fedfactory.rounds.answers import known_from, noted
from fedfactory.rounds.asking import plan_of
from fedfactory.rounds.ending import Step, finish
from fedfactory.rounds.events import (
    AggregationFailed,
    Command,
    DeadlinePassed,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    SiteConnected,
    SiteLeft,
    SiteLost,
)
from fedfactory.rounds.selection import passes
from fedfactory.rounds.serving import go_on, send_again, why_stuck
from fedfactory.rounds.state import MachineError, RunState, UnderWay, Waiting


def orders_sent(state: RunState, event: OrdersSent) -> Step:
    """Note which orders went out."""
    sent = {(site, event.round) for site in event.sites}
    under_way = tuple(
        replace(order, sent=True) if (order.site, order.number) in sent else order
        for order in state.async_.under_way
    )
    return state.with_async(under_way=under_way), ()


def _order(state: RunState, event: ReplyAccepted | ReplyRefused) -> UnderWay | None:
    """Return the order that an answer is to, None if it is none that is out."""
    if event.site not in plan_of(state).terms.sites:
        raise MachineError(state, event, "not a site of the plan")
    if event.kind == "train" and event.round > state.async_.given.get(event.site, 0):
        raise MachineError(state, event, "nothing of the kind has been asked yet")
    if event.kind == "evaluate":
        raise MachineError(state, event, "no evaluation has been asked yet")
    found = (o for o in state.async_.under_way if (o.site, o.number) == (event.site, event.round))
    return next(found, None)


def _late(state: RunState, event: ReplyAccepted | ReplyRefused) -> Step:
    waits = any(
        (w.answer.site, w.answer.round) == (event.site, event.round) for w in state.async_.waiting
    )
    return noted(state, event, "duplicate" if waits else "late"), ()


def _without(state: RunState, order: UnderWay) -> RunState:
    return state.with_async(under_way=tuple(o for o in state.async_.under_way if o is not order))


def reply_accepted(state: RunState, event: ReplyAccepted) -> Step:
    """Put an update into the buffer, once; its site is free for the next order."""
    order = _order(state, event)
    if order is None:
        return _late(state, event)
    update = Waiting(answer=event, model=order.model, version=order.version)
    waiting = (*state.async_.waiting, update)
    state = replace(_without(state, order).with_async(waiting=waiting), outcome="counted")
    return go_on(known_from(state, event), event.at)


def reply_refused(state: RunState, event: ReplyRefused) -> Step:
    """Ask again after a failure that passes, a few times; else leave the site alone."""
    order = _order(state, event)
    if order is None:
        return _late(state, event)
    plan = plan_of(state)
    if passes(event.code, plan.terms.privacy) and order.tries < plan.rules.retries:
        state, commands = _try_again(replace(state, outcome="refused"), order, event.at)
        state, more = go_on(state, event.at)
        return state, (*commands, *more)
    state = _left_alone(state, order, event.code)
    detail = {**state.async_.out_detail, order.site: event.detail}
    state = replace(state.with_async(out_detail=detail), outcome="gave_up")
    return go_on(state, event.at)


def _try_again(state: RunState, order: UnderWay, at: float) -> Step:
    tried = replace(order, tries=order.tries + 1)
    state = state.with_async(
        under_way=tuple(tried if o is order else o for o in state.async_.under_way)
    )
    return send_again(state, (tried,), at)


def _left_alone(state: RunState, order: UnderWay, code: str) -> RunState:
    """Give an order up; its site is asked for the next when its agent connects again."""
    missed = {**state.missed, order.site: state.missed.get(order.site, 0) + 1}
    detail = {site: found for site, found in state.async_.out_detail.items() if site != order.site}
    out = {**state.async_.out, order.site: code}
    return replace(_without(state, order).with_async(out=out, out_detail=detail), missed=missed)


def deadline_passed(state: RunState, event: DeadlinePassed) -> Step:
    """Ask again, or leave alone, those whose order is overdue; fail if nobody came in time."""
    if state.async_.armed_for is None or event.at < state.async_.armed_for:
        state = state.with_async(armed_for=None)
        return go_on(state, event.at)
    state = state.with_async(armed_for=None)
    commands: tuple[Command, ...] = ()
    retries = plan_of(state).rules.retries
    for order in [order for order in state.async_.under_way if order.due_at <= event.at]:
        if order.site in state.offline:
            state = _left_alone(state, order, "offline")
        elif order.tries >= retries:
            state = _left_alone(state, order, "no_answer")
        else:
            state, again = _try_again(state, order, event.at)
            commands = (*commands, *again)
    idle = state.async_.idle_until is not None and state.async_.idle_until <= event.at
    if idle and state.phase == "serving" and not state.async_.under_way:
        return finish(state, "failed", why_stuck(state))
    state, more = go_on(state, event.at)
    return state, (*commands, *more)


def site_connected(state: RunState, event: SiteConnected) -> Step:
    """Send a site that is back what it may have missed, or its next order."""
    out = {site: code for site, code in state.async_.out.items() if site != event.site}
    state = replace(state.with_async(out=out), offline=state.offline - {event.site})
    orders = [order for order in state.async_.under_way if order.site == event.site and order.sent]
    state, commands = send_again(state, orders, event.at)
    state, more = go_on(state, event.at)
    return state, (*commands, *more)


def site_lost(state: RunState, event: SiteLost) -> Step:
    """Note that a site is away; its order may still be answered until it is due."""
    return replace(state, offline=state.offline | {event.site}), ()


def site_left(state: RunState, event: SiteLeft) -> Step:
    """Give up the orders of a site that will not come back; updates of it that are in stay in."""
    left = {**state.left, event.site: event.code}
    under_way = tuple(order for order in state.async_.under_way if order.site != event.site)
    state = replace(state.with_async(under_way=under_way), left=left)
    return go_on(state, event.at)


def strategy_failed(state: RunState, event: AggregationFailed) -> Step:
    """End the run: the strategy could not plan an order, or make a model."""
    return finish(state, "failed", f"model {state.round}: {event.reason}")
