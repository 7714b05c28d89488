"""Who is asked in a sync run, and again: phases open, sites come and go, orders are sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.ending import Step, finish
from fedfactory.rounds.events import (
    Command,
    Event,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLeft,
    SiteLost,
)
from fedfactory.rounds.selection import evaluators, passes, select
from fedfactory.rounds.state import MachineError, RunState, SiteRecord

_KIND: Final[Mapping[str, WorkKind]] = {"training": "train", "evaluating": "evaluate"}


def plan_of(state: RunState) -> RunPlan:
    """Return the run's plan; there is one in every phase but `new`."""
    assert state.plan is not None
    return state.plan


def model_of(state: RunState) -> BlobRef:
    """Return the newest model; there is one in every phase but `new`."""
    assert state.model is not None
    return state.model


def open_kind(state: RunState) -> WorkKind:
    """Return what the open phase asks for."""
    return _KIND[state.phase]


def begin_round(state: RunState, number: int) -> Step:
    """Open the training phase of a round, or end the run if its quorum is out of reach."""
    cleared = replace(
        state.with_sync(train={}, evaluate={}, attempt=0), phase="training", round=number,
        late=(), metrics={}, central={}, awaits_metrics=False, awaits_central=False, taking=(),
    )  # fmt: skip
    state, commands = ask(cleared, "train", select(cleared, number))
    if reason := why_no_quorum(state):
        return finish(state, "failed", reason)
    return state, commands


def ask(state: RunState, kind: WorkKind, chosen: tuple[str, ...]) -> Step:
    """Open a phase: these sites are asked, and the time to answer is bounded."""
    records = {site: _unasked(state, site, chosen) for site in plan_of(state).terms.sites}
    sending = SendOrders(
        round=state.round, kind=kind, sites=chosen, model=model_of(state), again=False
    )
    state = replace(
        state,
        phase="training" if kind == "train" else "evaluating",
        planned=(*state.planned, sending),
    )
    state = state.with_sync(reached=frozenset(), away=state.offline & set(chosen), overtime=False)
    return with_records(state, kind, records), (sending, bound(state, kind))


def _unasked(state: RunState, site: str, chosen: tuple[str, ...]) -> SiteRecord:
    if site in chosen:
        return SiteRecord(status="asked")
    if site in state.left:
        return SiteRecord(status="refused", code=state.left[site])
    return SiteRecord(status="not_selected")


def ask_evaluation(state: RunState) -> Step:
    """Open the evaluation of the newest model."""
    return ask(state, "evaluate", evaluators(state))


def with_records(state: RunState, kind: WorkKind, records: Mapping[str, SiteRecord]) -> RunState:
    """Return the state with these records of the current round changed."""
    if kind == "train":
        return state.with_sync(train={**state.sync.train, **records})
    return state.with_sync(evaluate={**state.sync.evaluate, **records})


def bound(state: RunState, kind: WorkKind) -> SetDeadline:
    """Return the deadline of the open phase."""
    rules = plan_of(state).rules
    after_s = rules.lateness_s if state.sync.overtime else rules.deadline_s
    return SetDeadline(round=state.round, kind=kind, after_s=after_s)


def again(state: RunState, kind: WorkKind, sites: Iterable[str]) -> tuple[Command, ...]:
    """Return the sending, once more, of orders to those of `sites` that are here."""
    here = tuple(sorted(set(sites) - state.offline))
    if not here:
        return ()
    return (
        SendOrders(round=state.round, kind=kind, sites=here, model=model_of(state), again=True),
    )


# ---- sites come and go ----------------------------------------------------------------------


def site_lost(state: RunState, event: SiteLost) -> Step:
    """Note that a site is away; the deadline decides whether it is missed."""
    return replace(state, offline=state.offline | {event.site}), ()


def site_connected(state: RunState, event: SiteConnected) -> Step:
    """Note that a site is here."""
    return replace(state, offline=state.offline - {event.site}), ()


def site_left(state: RunState, event: SiteLeft) -> Step:
    """Note that a site will not come back."""
    return replace(state, left={**state.left, event.site: event.code}), ()


def site_connected_while_asked(state: RunState, event: SiteConnected) -> Step:
    """Ask again a site whose order went out before: a message that it missed is not kept for it."""
    state, _ = site_connected(state, event)
    state = state.with_sync(away=state.sync.away - {event.site})
    kind = open_kind(state)
    if event.site not in state.sync.reached or not state.awaits(state.round, kind, event.site):
        return state, ()
    return state, again(state, kind, (event.site,))


# ---- whether a quorum can still come about --------------------------------------------------


def check_past(state: RunState, event: Event, round: int, kind: WorkKind) -> None:  # noqa: A002
    """Check that (round, kind) has been asked for."""
    last = "train" if state.phase in ("training", "aggregating") else "evaluate"
    if (round, kind == "evaluate") > (state.round, last == "evaluate"):
        raise MachineError(state, event, "nothing of the kind has been asked yet")


def may_recover(state: RunState, site: str) -> bool:
    """Whether a site that gave nothing in this training phase can be asked again in it."""
    plan, record = plan_of(state), state.sync.train[site]
    if (
        site in state.left
        or site not in state.sync.reached
        or state.sync.attempt >= plan.rules.retries
    ):
        return False
    return record.status == "refused" and passes(record.code, plan.terms.privacy)


def has_quorum(state: RunState) -> bool:
    """Whether the updates that are in suffice."""
    rules, accepted = plan_of(state).rules, state.sites("train", "accepted")
    return len(accepted) >= rules.quorum and set(rules.required) <= set(accepted)


def why_no_quorum(state: RunState) -> str | None:
    """Return why the training phase cannot reach its quorum any more, None while it can."""
    rules = plan_of(state).rules
    possible = {
        site
        for site, record in state.sync.train.items()
        if record.status in ("asked", "accepted") or may_recover(state, site)
    }
    if len(possible) >= rules.quorum and set(rules.required) <= possible:
        return None
    accepted = state.sites("train", "accepted")
    missing = [
        f"{site}: {record.code or record.status}"
        for site, record in sorted(state.sync.train.items())
        if record.status not in ("accepted", "asked")
    ]
    absent = [f"'{site}'" for site in rules.required if site not in possible]
    left_out = state.sync.reached and state.sites("train", "not_selected")
    hint = ""
    if left_out and rules.select == "all" and len(state.sync.train) - len(left_out) < rules.quorum:
        hint = "; the strategy chose fewer sites than that: lower rounds.quorum"
    required = f"; the required site {', '.join(absent)} gave none" if absent else ""
    return (
        f"round {state.round}: {len(accepted)} of {len(state.sync.train)} sites gave an update,"
        f" {len(state.sites('train', 'asked'))} were still awaited, the quorum is {rules.quorum}"
        f"{hint}{required} ({', '.join(missing)})"
    )
