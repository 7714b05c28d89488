"""The life of a run: one event in, the next state and commands out. Reads no clock, does no IO.

TABLE says which event does what in which phase and where it may lead; diagram.py draws it. When
orders travel, how models are made and what is written is the runner's. A sync run trains,
aggregates, evaluates and sums up in turn; an async one serves its sites, and merges what they send.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from fedfactory.rounds import answers, asking, async_answers, ending, finishing, recovering
from fedfactory.rounds.ending import Step
from fedfactory.rounds.events import (
    AggregationFailed,
    CentralMeasured,
    CheckpointLost,
    Command,
    DeadlinePassed,
    Event,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunFailed,
    RunReopened,
    RunResumed,
    RunStarted,
    SiteConnected,
    SiteLeft,
    SiteLost,
    StopRequested,
    UpdateLost,
    UpdateRefused,
)
from fedfactory.rounds.state import MachineError, Phase, RunState, told

__all__ = ["PHASES", "TABLE", "MachineError", "RunState", "Transition", "replay", "step"]

STORY_LENGTH: Final = 12


def step(state: RunState, event: Event) -> tuple[RunState, tuple[Command, ...]]:
    """Return the state after `event` and the commands to perform, in order.

    Raises:
        MachineError: the event makes no sense in this phase.
    """
    transition = TABLE.get((state.phase, type(event)))
    if transition is None:
        raise MachineError(state, event, "no such transition")
    after, commands = transition.act(replace(state, outcome="applied"), event)
    assert after.phase in transition.to, f"{transition} led to {after.phase}"
    if (state.phase, after.phase) != ("done", "done"):
        after = replace(after, story=(*state.story, told(event))[-STORY_LENGTH:])
    return after, commands


def replay(events: Iterable[Event]) -> RunState:
    """Return the state that a log of events leads to."""
    state = RunState.new()
    for event in events:
        state, _ = step(state, event)
    return state


@dataclass(frozen=True, slots=True)
class Transition:
    """What an event does (`act`), and the phases that it may lead to (`to`)."""

    act: Callable[[RunState, Any], Step]
    to: tuple[Phase, ...]


Rows = Mapping[tuple[Phase, type[Event]], Transition]


def _rows(phase: Phase, rows: Mapping[type[Event], tuple[Callable[..., Step], str]]) -> Rows:
    """Return a phase's part of the table. `to` names phases, with a space between."""
    return {
        (phase, event): Transition(act, tuple(_NAMED[name] for name in to.split()))
        for event, (act, to) in rows.items()
    }


PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
_NAMED: Final[Mapping[str, Phase]] = {phase: phase for phase in PHASES}
_TRAINED: Final = "training aggregating done"
_EVALUATED: Final = "evaluating summing training done"
_SERVED: Final = "serving merging done"
_FELL_BACK: Final = "training serving merging done"

TABLE: Final[Rows] = {
    **_rows("new", {RunStarted: (recovering.start, "training serving done")}),
    **_rows(
        "training",
        {
            OrdersSent: (answers.orders_sent, _TRAINED),
            ReplyAccepted: (answers.reply_accepted, _TRAINED),
            ReplyRefused: (answers.reply_refused, _TRAINED),
            DeadlinePassed: (answers.deadline_passed, _TRAINED),
            SiteConnected: (asking.site_connected_while_asked, "training"),
            SiteLost: (asking.site_lost, "training"),
            SiteLeft: (answers.site_left_while_asked, _TRAINED),
            CentralMeasured: (finishing.central_measured, "training"),
            AggregationFailed: (finishing.strategy_failed, "done"),
            StopRequested: (ending.stop, "training done"),
            RunFailed: (ending.fail, "done"),
            RunResumed: (recovering.resume, "training"),
            UpdateLost: (recovering.update_lost, _TRAINED),
            UpdateRefused: (recovering.update_refused, _TRAINED),
            CheckpointLost: (recovering.checkpoint_lost, "training done"),
        },
    ),
    **_rows(
        "aggregating",
        {
            ModelAggregated: (
                finishing.model_aggregated,
                "evaluating summing training done",
            ),
            OrdersSent: (answers.orders_sent_for_closed_phase, "aggregating"),
            ReplyAccepted: (answers.reply_too_late, "aggregating"),
            ReplyRefused: (answers.reply_too_late, "aggregating"),
            DeadlinePassed: (answers.deadline_of_closed_phase, "aggregating"),
            SiteConnected: (asking.site_connected, "aggregating"),
            SiteLost: (asking.site_lost, "aggregating"),
            SiteLeft: (asking.site_left, "aggregating"),
            AggregationFailed: (finishing.strategy_failed, "done"),
            StopRequested: (ending.stop, "aggregating done"),
            RunFailed: (ending.fail, "done"),
            RunResumed: (recovering.resume, "aggregating"),
            UpdateLost: (recovering.update_lost, _TRAINED),
            UpdateRefused: (recovering.update_refused, _TRAINED),
            CheckpointLost: (recovering.checkpoint_lost, "training done"),
        },
    ),
    **_rows(
        "evaluating",
        {
            OrdersSent: (answers.orders_sent, _EVALUATED),
            ReplyAccepted: (answers.reply_accepted, _EVALUATED),
            ReplyRefused: (answers.reply_refused, _EVALUATED),
            DeadlinePassed: (answers.deadline_passed, _EVALUATED),
            SiteConnected: (asking.site_connected_while_asked, "evaluating"),
            SiteLost: (asking.site_lost, "evaluating"),
            SiteLeft: (answers.site_left_while_asked, _EVALUATED),
            CentralMeasured: (finishing.central_measured, "evaluating"),
            AggregationFailed: (finishing.strategy_failed, "done"),
            StopRequested: (ending.stop, "evaluating done"),
            RunFailed: (ending.fail, "done"),
            RunResumed: (recovering.resume, "evaluating"),
            UpdateLost: (ending.ignore, "evaluating"),
            UpdateRefused: (ending.ignore, "evaluating"),
            CheckpointLost: (recovering.checkpoint_lost, _FELL_BACK),
        },
    ),
    **_rows(
        "summing",
        {
            MetricsAggregated: (finishing.metrics_aggregated, "summing training done"),
            CentralMeasured: (finishing.central_measured, "summing training done"),
            OrdersSent: (answers.orders_sent_for_closed_phase, "summing"),
            ReplyAccepted: (answers.reply_too_late, "summing"),
            ReplyRefused: (answers.reply_too_late, "summing"),
            DeadlinePassed: (answers.deadline_of_closed_phase, "summing"),
            SiteConnected: (asking.site_connected, "summing"),
            SiteLost: (asking.site_lost, "summing"),
            SiteLeft: (asking.site_left, "summing"),
            AggregationFailed: (finishing.strategy_failed, "done"),
            StopRequested: (ending.stop, "summing done"),
            RunFailed: (ending.fail, "done"),
            RunResumed: (recovering.resume, "summing"),
            UpdateLost: (ending.ignore, "summing"),
            UpdateRefused: (ending.ignore, "summing"),
            CheckpointLost: (recovering.checkpoint_lost, _FELL_BACK),
        },
    ),
    **_rows(
        "serving",
        {
            OrdersSent: (async_answers.orders_sent, "serving"),
            ReplyAccepted: (async_answers.reply_accepted, _SERVED),
            ReplyRefused: (async_answers.reply_refused, _SERVED),
            DeadlinePassed: (async_answers.deadline_passed, _SERVED),
            SiteConnected: (async_answers.site_connected, _SERVED),
            SiteLost: (async_answers.site_lost, "serving"),
            SiteLeft: (async_answers.site_left, _SERVED),
            CentralMeasured: (finishing.central_measured, "serving"),
            AggregationFailed: (async_answers.strategy_failed, "done"),
            StopRequested: (ending.stop, "serving done"),
            RunFailed: (ending.fail, "done"),
            RunResumed: (recovering.resume, _SERVED),
            UpdateLost: (recovering.update_lost_async, _SERVED),
            UpdateRefused: (recovering.update_refused_async, _SERVED),
            CheckpointLost: (recovering.checkpoint_lost, _SERVED),
        },
    ),
    **_rows(
        "merging",
        {
            ModelAggregated: (finishing.model_aggregated, "merging serving evaluating done"),
            CentralMeasured: (finishing.central_measured, _SERVED),
            OrdersSent: (async_answers.orders_sent, "merging"),
            ReplyAccepted: (async_answers.reply_accepted, "merging"),
            ReplyRefused: (async_answers.reply_refused, "merging"),
            DeadlinePassed: (async_answers.deadline_passed, "merging"),
            SiteConnected: (async_answers.site_connected, "merging"),
            SiteLost: (async_answers.site_lost, "merging"),
            SiteLeft: (async_answers.site_left, "merging"),
            AggregationFailed: (async_answers.strategy_failed, "done"),
            StopRequested: (ending.stop, "merging done"),
            RunFailed: (ending.fail, "done"),
            RunResumed: (recovering.resume, "merging"),
            UpdateLost: (recovering.update_lost_async, _SERVED),
            UpdateRefused: (recovering.update_refused_async, _SERVED),
            CheckpointLost: (recovering.checkpoint_lost, _SERVED),
        },
    ),
    **_rows("done", dict.fromkeys(get_args(Event), (ending.ignore, "done"))),
    **_rows(
        "done",
        {
            RunResumed: (recovering.resume, "done"),
            RunReopened: (recovering.reopen, "training serving done"),
        },
    ),
}
