"""An async run's orders: who gets one, until when, and when the run cannot go on (FedBuff).

Nguyen et al. 2022, algorithm 1: every site trains from the newest model there is when it is free;
every `buffer` updates make a new one. See async_answers.py for what comes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from fedfactory.rounds.asking import model_of, plan_of
from fedfactory.rounds.ending import Step, finish
from fedfactory.rounds.events import Aggregate, Command, SendOrders, SetDeadline, Taken
from fedfactory.rounds.selection import passes
from fedfactory.rounds.state import RunState, UnderWay


def serve(state: RunState, number: int, at: float) -> Step:
    """Go on towards model `number`."""
    state = replace(
        state, phase="serving", round=number, taking=(), metrics={}, central={}, late=(),
        awaits_metrics=False, awaits_central=False,
    )  # fmt: skip
    return go_on(state, at)


def go_on(state: RunState, at: float) -> Step:
    """Make a model if the buffer is full; else keep every site busy, or fail if that is in vain."""
    if state.phase != "serving":
        return state, ()
    buffer = buffer_of(state)
    if len(state.async_.waiting) >= buffer:
        state = replace(state, phase="merging", taking=_taken(state, buffer))
        return state, (aggregate(state),)
    if reason := _why_in_vain(state):
        return finish(state, "failed", reason)
    state, orders = _give_orders(state, at)
    state, timer = arm(state, at)
    return state, (*orders, *timer)


def buffer_of(state: RunState) -> int:
    """Return how many updates make a model."""
    buffer = plan_of(state).rules.buffer
    assert buffer is not None
    return buffer


def _taken(state: RunState, count: int) -> tuple[Taken, ...]:
    """Return the updates that came first, in canonical order."""
    found = (
        Taken(
            site=update.answer.site,
            order_round=update.answer.round,
            staleness=state.version - update.version,
        )
        for update in state.async_.waiting[:count]
    )
    return tuple(sorted(found, key=lambda taken: (taken.site, taken.order_round)))


def aggregate(state: RunState) -> Aggregate:
    """Return the aggregate under way."""
    return Aggregate(round=state.round, updates=state.taking)


# ---- orders ---------------------------------------------------------------------------------


def _give_orders(state: RunState, at: float) -> Step:
    """Give an order from the newest model to every site that is here and has none."""
    plan, model = plan_of(state), model_of(state)
    busy = {order.site for order in state.async_.under_way}
    idle = [
        site
        for site in sorted(plan.terms.sites)
        if site not in state.left and site not in state.async_.out and site not in state.offline
        and site not in busy and state.async_.given.get(site, 0) < plan.terms.rounds
    ]  # fmt: skip
    given = {site: state.async_.given.get(site, 0) + 1 for site in idle}
    fresh = tuple(
        UnderWay(
            site=site,
            number=given[site],
            model=model,
            version=state.version,
            due_at=at + plan.rules.deadline_s,
            sent=False,
            tries=0,
        )
        for site in idle
    )
    state = state.with_async(
        given={**state.async_.given, **given}, under_way=(*state.async_.under_way, *fresh)
    )
    return state, sendings(fresh, again=False)


def sendings(orders: Iterable[UnderWay], *, again: bool) -> tuple[Command, ...]:
    """Return the sendings of these orders: one for each number and model."""
    groups: dict[tuple[int, str], list[UnderWay]] = {}
    for order in sorted(orders, key=lambda order: (order.number, order.version, order.site)):
        groups.setdefault((order.number, order.model.digest), []).append(order)
    return tuple(
        SendOrders(
            round=number,
            kind="train",
            sites=tuple(order.site for order in group),
            model=group[0].model,
            again=again,
        )
        for (number, _), group in groups.items()
    )


def send_again(state: RunState, orders: Iterable[UnderWay], at: float) -> Step:
    """Send orders once more to those who are here; the time to answer begins anew."""
    due_at = at + plan_of(state).rules.deadline_s
    renewed = {id(order): replace(order, due_at=due_at) for order in orders}
    state = state.with_async(
        under_way=tuple(renewed.get(id(order), order) for order in state.async_.under_way)
    )
    here = [order for order in renewed.values() if order.site not in state.offline]
    return state, sendings(here, again=True)


# ---- time, and when it is in vain -----------------------------------------------------------


def arm(state: RunState, at: float) -> Step:
    """Set the timer to the first order that falls due, or to the end of patience with nobody."""
    rules = plan_of(state).rules
    idle_until = None
    if not state.async_.under_way:
        idle_until = state.async_.idle_until or at + rules.deadline_s + rules.lateness_s
    due_at = idle_until or min(order.due_at for order in state.async_.under_way)
    state = state.with_async(idle_until=idle_until)
    if due_at == state.async_.armed_for:
        return state, ()
    state = state.with_async(armed_for=due_at)
    after_s = max(0.001, due_at - at)
    return state, (SetDeadline(round=state.round, kind="train", after_s=after_s),)


def _why_in_vain(state: RunState) -> str | None:
    """Return why no further model can come about, None while one can."""
    plan = plan_of(state)
    there = [site for site in plan.terms.sites if not gone(state, site)]
    possible = len(state.async_.waiting) + len(state.async_.under_way)
    possible += sum(plan.terms.rounds - state.async_.given.get(site, 0) for site in there)
    absent = [s for s in plan.rules.required if s in state.never_took_part and s not in there]
    if possible >= buffer_of(state) and not absent:
        return None
    return why_stuck(state, [f"'{site}'" for site in absent])


def why_stuck(state: RunState, absent: Iterable[str] = ()) -> str:
    """Return the sentence that says that no model comes about, and which sites are to blame."""
    missing = {**state.async_.out, **dict.fromkeys(sorted(state.offline), "offline"), **state.left}
    named = ", ".join(f"{site}: {code}" for site, code in sorted(missing.items()))
    who = ", ".join(absent)
    required = f"; the required site {who} never took part" if who else ""
    count = len(state.async_.waiting)
    return (
        f"model {state.round}: {count} updates are in, and the sites left do not fill"
        f" a buffer of {buffer_of(state)}{required} ({named or 'every order was used up'})"
    )


def gone(state: RunState, site: str) -> bool:
    """Whether nothing is to be expected of a site, unless its agent reconnects."""
    code = state.async_.out.get(site)
    if site in state.left:
        return True
    silent = ("offline", "no_answer")
    privacy = plan_of(state).terms.privacy
    return code is not None and code not in silent and not passes(code, privacy)
