"""From a new model to the end of its round: evaluation, judgement, what is kept, what comes next.

Sync and async runs share it; `serve` (serving.py) is what an async run goes on with.
"""

from __future__ import annotations

from dataclasses import replace

from fedfactory.rounds.asking import ask_evaluation, begin_round, model_of, plan_of
from fedfactory.rounds.ending import Step, complete, finish
from fedfactory.rounds.events import (
    AggregateMetrics,
    AggregationFailed,
    CentralMeasured,
    Command,
    Event,
    MeasureCentrally,
    MetricsAggregated,
    ModelAggregated,
    RecordRound,
)
from fedfactory.rounds.judging import judge, why_enough
from fedfactory.rounds.keeping import dropped, with_stored
from fedfactory.rounds.serving import serve
from fedfactory.rounds.state import Closed, Finished, MachineError, RunState


def model_aggregated(state: RunState, event: ModelAggregated) -> Step:
    """Advance to the new model; let it be evaluated, or finish the round."""
    check_round(state, event, event.round)
    plan = plan_of(state)
    last = state.round == plan.terms.rounds
    taken = {update.site for update in state.taking}
    keys = {(update.site, update.order_round) for update in state.taking}
    entered = tuple(w for w in state.async_.waiting if (w.answer.site, w.answer.round) in keys)
    state = replace(
        state,
        model=event.model,
        version=event.round,
        strategy_state=event.state,
        stored=with_stored(state.stored, event.model, event.state),
        took_part=state.took_part | taken,
        planned=(),
        evaluated=(),
        awaits_central=plan.central is not None,
    ).with_async(
        waiting=tuple(w for w in state.async_.waiting if w not in entered),
        entered=entered,
        under_way=() if last else state.async_.under_way,
    )
    commands: tuple[Command, ...] = ()
    by_sites = plan.terms.evaluate and (last or not plan.is_async)
    if by_sites:
        state, commands = ask_evaluation(state)
    if state.awaits_central:
        commands = (*commands, measure(state))
    if by_sites:
        return state, commands
    if not state.awaits_central:
        return finish_round(state, event.at)
    if plan.is_async:
        return state, commands  # it stays in `merging` until the measurement is there
    return replace(state, phase="summing"), commands


def measure(state: RunState) -> MeasureCentrally:
    """Return the central measurement of the newest model."""
    return MeasureCentrally(round=state.round, model=model_of(state))


def close_evaluation(state: RunState, at: float) -> Step:
    """Sum up once nobody is awaited; sites that are away are not, if others have answered."""
    awaited = set(state.sites("evaluate", "asked"))
    accepted = state.sites("evaluate", "accepted")
    if awaited - state.sync.away or (awaited and not accepted):
        return state, ()
    if awaited:
        from_away = {s: replace(state.sync.evaluate[s], status="no_answer", code="offline", at=at)
                     for s in awaited}  # fmt: skip
        state = state.with_sync(evaluate={**state.sync.evaluate, **from_away})
    if accepted:
        command = AggregateMetrics(round=state.round, sites=accepted)
        return replace(state, phase="summing", awaits_metrics=True), (command,)
    return finish_if_measured(replace(state, phase="summing"), at)


def metrics_aggregated(state: RunState, event: MetricsAggregated) -> Step:
    """Note the sites' metrics; finish the round unless the central measurement is outstanding."""
    check_round(state, event, event.round)
    if not state.awaits_metrics:
        raise MachineError(state, event, "no metrics were asked for")
    state = replace(
        state, metrics=event.metrics, awaits_metrics=False, evaluated=state.answers("evaluate")
    )
    return finish_if_measured(state, event.at)


def central_measured(state: RunState, event: CentralMeasured) -> Step:
    """Note the central metrics; finish the round unless the sites' are outstanding."""
    if event.round > state.round:
        raise MachineError(state, event, f"the round is {state.round}")
    if event.round < state.round or not state.awaits_central:
        return state, ()  # measured again after a restart
    state = replace(state, central=event.metrics, awaits_central=False)
    return (state, ()) if state.phase == "evaluating" else finish_if_measured(state, event.at)


def finish_if_measured(state: RunState, at: float) -> Step:
    """Finish the round once all its measurements are there."""
    if state.awaits_metrics or state.awaits_central:
        return state, ()
    return finish_round(state, at)


def strategy_failed(state: RunState, event: AggregationFailed) -> Step:
    """End the run: the strategy could not plan, or make a model."""
    check_round(state, event, event.round)
    return finish(state, "failed", f"round {event.round}: {event.reason}")


def finish_round(state: RunState, at: float) -> Step:
    """The round counts: judge its model, keep it, drop what is old, and go on or end."""
    state = replace(state, finished=_with_finished(state))
    drop = dropped(state)
    gone = {ref.digest for ref in drop}
    record = RecordRound(round=state.round, drop=drop)
    state = replace(
        state,
        recorded=record,
        closed=_closed(state),
        stored=tuple(r for r in state.stored if r.digest not in gone),
    )
    after, commands = _go_on(state, at)
    return after, (record, *commands)


def _closed(state: RunState) -> Closed:
    return Closed(
        round=state.round,
        train=state.sync.train,
        evaluate=state.sync.evaluate,
        metrics=state.metrics,
        central=state.central,
        entered=state.async_.entered,
    )


def _with_finished(state: RunState) -> tuple[Finished, ...]:
    plan = plan_of(state)
    found = Finished(
        round=state.round,
        model=model_of(state),
        state=state.strategy_state,
        judgement=judge(
            state.finished[-1].judgement,
            plan.evaluation,
            number=state.round,
            model=model_of(state),
            metrics=state.metrics if plan.central is None else state.central,
        ),
        took_part=state.took_part,
        planned=state.planned,
        evaluated=state.evaluated,
        entered=state.async_.entered,
    )
    return (*state.finished, found)[-plan.checkpoints :]


def _go_on(state: RunState, at: float) -> Step:
    plan = plan_of(state)
    if state.round == plan.terms.rounds:
        return complete(state, "every round is finished")
    if state.stopping is not None:
        return finish(state, "stopped", state.stopping)
    if reason := why_enough(state.finished[-1].judgement, plan.evaluation, state.round):
        return complete(state, reason)
    return next_round(state, at)


def next_round(state: RunState, at: float) -> Step:
    """Begin the round after the last finished one."""
    number = state.finished[-1].round + 1
    if plan_of(state).is_async:
        return serve(state, number, at)
    return begin_round(state, number)


def check_round(state: RunState, event: Event, found: int) -> None:
    """Check that an event is of the current round."""
    if found != state.round:
        raise MachineError(state, event, f"the round is {state.round}")
