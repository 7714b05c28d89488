"""What each event does to a run: the functions that the machine's table names.

Each takes a state and an event and returns the next state and the commands to perform. Who is
asked, who is awaited and when a phase closes is settled here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKind
from fedfactory.rounds.events import (
    Aggregate,
    AggregateMetrics,
    AggregationFailed,
    Command,
    DeadlinePassed,
    Event,
    Finish,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    RecordRound,
    ReplyAccepted,
    ReplyRefused,
    RunFailed,
    RunPlan,
    RunStarted,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLost,
    Status,
    StopRequested,
)
from fedfactory.rounds.state import LateAnswer, MachineError, Phase, RunState, SiteRecord

Step = tuple[RunState, tuple[Command, ...]]
Answer = ReplyAccepted | ReplyRefused

_KIND: Final[Mapping[Phase, WorkKind]] = {"training": "train", "evaluating": "evaluate"}


# ---- beginnings and endings -----------------------------------------------------------------


def _plan(state: RunState) -> RunPlan:
    assert state.plan is not None
    return state.plan


def _model(state: RunState) -> BlobRef:
    assert state.model is not None
    return state.model


def start(state: RunState, event: RunStarted) -> Step:
    """Begin round 1, or end at once a run that was stopped before it began."""
    plan = event.plan
    if plan.rounds < 1 or not 1 <= plan.quorum <= len(set(plan.sites)) == len(plan.sites):
        raise MachineError(state, event, f"the plan cannot be run: {plan}")
    begun = replace(state, plan=plan, model=event.model, finished_model=event.model)
    if state.ended is not None:  # stopped or broken before it began
        return _finish(begun, state.ended.status, state.ended.reason)
    return _begin_round(begun, 1)


def _begin_round(state: RunState, number: int) -> Step:
    cleared = replace(state, round=number, train={}, evaluate={}, late=())
    return _ask(cleared, "train")


def _ask(state: RunState, kind: WorkKind) -> Step:
    """Open a phase: everyone is asked, and the time to answer is bounded."""
    plan = _plan(state)
    asked = {site: SiteRecord(status="asked") for site in plan.sites}
    if kind == "train":
        state = replace(state, phase="training", train=asked, reached=frozenset())
    else:
        state = replace(state, phase="evaluating", evaluate=asked, reached=frozenset())
    sites = tuple(sorted(plan.sites))
    return state, (
        SendOrders(round=state.round, kind=kind, sites=sites, model=_model(state), again=False),
        SetDeadline(round=state.round, kind=kind, after_s=plan.deadline_s),
    )


def _finish(state: RunState, status: Status, reason: str) -> Step:
    assert state.finished_model is not None
    end = Finish(status=status, reason=reason, model=state.finished_model)
    return replace(state, phase="done", ended=end), (end,)


def _finish_round(state: RunState) -> Step:
    finished = replace(state, finished_model=_model(state))
    record = RecordRound(round=state.round)
    if state.round == _plan(state).rounds:
        after, commands = _finish(finished, "completed", "every round is finished")
    else:
        after, commands = _begin_round(finished, state.round + 1)
    return after, (record, *commands)


def stop(state: RunState, event: StopRequested) -> Step:
    """End on request with the last finished round's model."""
    return _finish(state, "stopped", event.reason)


def fail(state: RunState, event: RunFailed) -> Step:
    """End because something outside the rounds broke."""
    return _finish(state, "failed", event.reason)


def end_before_start(state: RunState, event: StopRequested | RunFailed) -> Step:
    """Remember the end until RunStarted names a model to finish with."""
    if state.ended is not None:
        return state, ()
    status: Status = "stopped" if isinstance(event, StopRequested) else "failed"
    nothing = BlobRef(digest="sha256:" + "0" * 64, bytes=0)
    return replace(state, ended=Finish(status=status, reason=event.reason, model=nothing)), ()


def ignore(state: RunState, event: Event) -> Step:  # noqa: ARG001
    """Change nothing: the run is over."""
    return state, ()


# ---- sites come and go ----------------------------------------------------------------------


def site_lost(state: RunState, event: SiteLost) -> Step:
    """Note that a site is away; the deadline decides whether it is missed."""
    return replace(state, offline=state.offline | {event.site}), ()


def site_connected(state: RunState, event: SiteConnected) -> Step:
    """Note that a site is here."""
    return replace(state, offline=state.offline - {event.site}), ()


def site_connected_while_asked(state: RunState, event: SiteConnected) -> Step:
    """Ask again a site whose order went out before: a message that it missed is not kept for it."""
    state, _ = site_connected(state, event)
    kind = _KIND[state.phase]
    if event.site not in state.reached or not state.awaits(state.round, kind, event.site):
        return state, ()
    return state, (
        SendOrders(
            round=state.round, kind=kind, sites=(event.site,), model=_model(state), again=True
        ),
    )


def orders_sent(state: RunState, event: OrdersSent) -> Step:
    """Note whom the orders reached. Sites left out of the first sending are not awaited."""
    kind = _KIND[state.phase]
    if (event.round, event.kind) != (state.round, kind):
        return orders_sent_for_closed_phase(state, event)
    if strangers := set(event.sites) - set(_plan(state).sites):
        raise MachineError(state, event, f"not sites of the plan: {sorted(strangers)}")
    first = not state.reached
    state = replace(state, reached=state.reached | set(event.sites))
    if not first:
        return state, ()
    left_out = set(state.sites(kind, "asked")) - set(event.sites)
    state = _with(state, kind, {site: SiteRecord(status="not_selected") for site in left_out})
    return _close_if_answered(state)


def orders_sent_for_closed_phase(state: RunState, event: OrdersSent) -> Step:
    """Orders may be reported sent after their phase closed; those of the future may not."""
    _check_past(state, event, event.round, event.kind)
    return state, ()


# ---- answers --------------------------------------------------------------------------------


def _with(state: RunState, kind: WorkKind, records: Mapping[str, SiteRecord]) -> RunState:
    if kind == "train":
        return replace(state, train={**state.train, **records})
    return replace(state, evaluate={**state.evaluate, **records})


def _check_past(state: RunState, event: Event, round: int, kind: WorkKind) -> None:  # noqa: A002
    last = "train" if state.phase in ("training", "aggregating") else "evaluate"
    if (round, kind == "evaluate") > (state.round, last == "evaluate"):
        raise MachineError(state, event, "nothing of the kind has been asked yet")


def reply_too_late(state: RunState, event: Answer) -> Step:
    """Note an answer that counts for nothing: a second one, or one for a closed phase."""
    _check_past(state, event, event.round, event.kind)
    if event.site not in _plan(state).sites:
        raise MachineError(state, event, "not a site of the plan")
    again = (
        event.round == state.round
        and (record := state.records(event.kind).get(event.site)) is not None
        and record.status in ("accepted", "refused")
    )
    why: Literal["duplicate", "late"] = "duplicate" if again else "late"
    late = LateAnswer(at=event.at, round=event.round, kind=event.kind, site=event.site, why=why)
    return replace(state, late=(*state.late, late)), ()


def reply_accepted(state: RunState, event: ReplyAccepted) -> Step:
    """Count an update or evaluation, once."""
    if not state.awaits(event.round, event.kind, event.site):
        return reply_too_late(state, event)
    record = SiteRecord(
        status="accepted",
        payload=event.payload,
        examples=event.examples,
        metrics=event.metrics,
        seconds=event.seconds,
        at=event.at,
    )
    state = _with(state, event.kind, {event.site: record})
    if event.kind == "train":
        state = replace(state, took_part=state.took_part | {event.site})
    return _close_if_answered(state)


def reply_refused(state: RunState, event: ReplyRefused) -> Step:
    """Take a refusal as the site's last word on this phase: its agent has retried."""
    if not state.awaits(event.round, event.kind, event.site):
        return reply_too_late(state, event)
    record = SiteRecord(status="refused", code=event.code, detail=event.detail, at=event.at)
    return _close_if_answered(_with(state, event.kind, {event.site: record}))


def deadline_passed(state: RunState, event: DeadlinePassed) -> Step:
    """Stop waiting: who has not answered is named as silent or away."""
    kind = _KIND[state.phase]
    if (event.round, event.kind) != (state.round, kind):
        return deadline_of_closed_phase(state, event)
    silent = {
        site: SiteRecord(
            status="no_answer", code="offline" if site in state.offline else "no_answer"
        )
        for site in state.sites(kind, "asked")
    }
    return _close_if_answered(_with(state, kind, silent))


def deadline_of_closed_phase(state: RunState, event: DeadlinePassed) -> Step:
    """A timer may ring after its phase closed by itself."""
    _check_past(state, event, event.round, event.kind)
    return state, ()


# ---- phases close ---------------------------------------------------------------------------


def _close_if_answered(state: RunState) -> Step:
    return _close_training(state) if state.phase == "training" else _close_evaluation(state)


def _close_training(state: RunState) -> Step:
    """Aggregate once nobody is awaited; fail as soon as the quorum is out of reach."""
    accepted, awaited = state.sites("train", "accepted"), state.sites("train", "asked")
    if len(accepted) + len(awaited) < _plan(state).quorum:
        return _finish(state, "failed", _why_no_quorum(state))
    if awaited:
        return state, ()
    command = Aggregate(round=state.round, sites=accepted)
    return replace(state, phase="aggregating"), (command,)


def _why_no_quorum(state: RunState) -> str:
    plan = _plan(state)
    missing = [
        f"{site}: {record.code or record.status}"
        for site, record in sorted(state.train.items())
        if record.status not in ("accepted", "asked")
    ]
    return (
        f"round {state.round}: {len(state.sites('train', 'accepted'))} of {len(plan.sites)} sites"
        f" gave an update, {len(state.sites('train', 'asked'))} were still awaited, the quorum is"
        f" {plan.quorum} ({', '.join(missing)})"
    )


def _close_evaluation(state: RunState) -> Step:
    if state.sites("evaluate", "asked"):
        return state, ()
    if not (accepted := state.sites("evaluate", "accepted")):
        return _finish_round(state)
    command = AggregateMetrics(round=state.round, sites=accepted)
    return replace(state, phase="summing"), (command,)


def model_aggregated(state: RunState, event: ModelAggregated) -> Step:
    """Advance to the new model; let it be evaluated, or finish the round."""
    _check_round(state, event, event.round)
    advanced = replace(state, model=event.model)
    return _ask(advanced, "evaluate") if _plan(state).evaluate else _finish_round(advanced)


def strategy_failed(state: RunState, event: AggregationFailed) -> Step:
    """End the run: the strategy could not plan, or make a model."""
    _check_round(state, event, event.round)
    return _finish(state, "failed", f"round {event.round}: {event.reason}")


def metrics_aggregated(state: RunState, event: MetricsAggregated) -> Step:
    """Finish the round."""
    _check_round(state, event, event.round)
    return _finish_round(state)


def _check_round(state: RunState, event: Event, found: int) -> None:
    if found != state.round:
        raise MachineError(state, event, f"the round is {state.round}")
