"""The life of a run: one event in, the next state and commands out. Reads no clock, does no IO.

TABLE says which event does what in which phase and where it may lead; diagram.py draws it. When
orders travel, how models are made and what is written is the runner's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fedfactory.rounds import transitions as does
from fedfactory.rounds.events import (
    AggregationFailed,
    Command,
    DeadlinePassed,
    Event,
    MetricsAggregated,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunFailed,
    RunStarted,
    SiteConnected,
    SiteLost,
    StopRequested,
)
from fedfactory.rounds.state import MachineError, Phase, RunState, told
from fedfactory.rounds.transitions import Step

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
    after, commands = transition.act(state, event)
    assert after.phase in transition.to, f"{transition} led to {after.phase}"
    if state.phase != "done":
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


PHASES: Final[tuple[Phase, ...]] = (
    "new",
    "training",
    "aggregating",
    "evaluating",
    "summing",
    "done",
)
_TRAINED: Final[tuple[Phase, ...]] = ("training", "aggregating", "done")
_EVALUATED: Final[tuple[Phase, ...]] = ("evaluating", "summing", "training", "done")

TABLE: Final[Mapping[tuple[Phase, type[Event]], Transition]] = {
    ("new", RunStarted): Transition(does.start, ("training", "done")),
    ("new", SiteConnected): Transition(does.site_connected, ("new",)),
    ("new", SiteLost): Transition(does.site_lost, ("new",)),
    ("new", StopRequested): Transition(does.end_before_start, ("new",)),
    ("new", RunFailed): Transition(does.end_before_start, ("new",)),
    ("training", OrdersSent): Transition(does.orders_sent, _TRAINED),
    ("training", ReplyAccepted): Transition(does.reply_accepted, _TRAINED),
    ("training", ReplyRefused): Transition(does.reply_refused, _TRAINED),
    ("training", DeadlinePassed): Transition(does.deadline_passed, _TRAINED),
    ("training", SiteConnected): Transition(does.site_connected_while_asked, ("training",)),
    ("training", SiteLost): Transition(does.site_lost, ("training",)),
    ("training", AggregationFailed): Transition(does.strategy_failed, ("done",)),
    ("training", StopRequested): Transition(does.stop, ("done",)),
    ("training", RunFailed): Transition(does.fail, ("done",)),
    ("aggregating", ModelAggregated): Transition(
        does.model_aggregated, ("evaluating", "training", "done")
    ),
    ("aggregating", AggregationFailed): Transition(does.strategy_failed, ("done",)),
    ("aggregating", OrdersSent): Transition(does.orders_sent_for_closed_phase, ("aggregating",)),
    ("aggregating", ReplyAccepted): Transition(does.reply_too_late, ("aggregating",)),
    ("aggregating", ReplyRefused): Transition(does.reply_too_late, ("aggregating",)),
    ("aggregating", DeadlinePassed): Transition(does.deadline_of_closed_phase, ("aggregating",)),
    ("aggregating", SiteConnected): Transition(does.site_connected, ("aggregating",)),
    ("aggregating", SiteLost): Transition(does.site_lost, ("aggregating",)),
    ("aggregating", StopRequested): Transition(does.stop, ("done",)),
    ("aggregating", RunFailed): Transition(does.fail, ("done",)),
    ("evaluating", OrdersSent): Transition(does.orders_sent, _EVALUATED),
    ("evaluating", ReplyAccepted): Transition(does.reply_accepted, _EVALUATED),
    ("evaluating", ReplyRefused): Transition(does.reply_refused, _EVALUATED),
    ("evaluating", DeadlinePassed): Transition(does.deadline_passed, _EVALUATED),
    ("evaluating", SiteConnected): Transition(does.site_connected_while_asked, ("evaluating",)),
    ("evaluating", SiteLost): Transition(does.site_lost, ("evaluating",)),
    ("evaluating", AggregationFailed): Transition(does.strategy_failed, ("done",)),
    ("evaluating", StopRequested): Transition(does.stop, ("done",)),
    ("evaluating", RunFailed): Transition(does.fail, ("done",)),
    ("summing", MetricsAggregated): Transition(does.metrics_aggregated, ("training", "done")),
    ("summing", AggregationFailed): Transition(does.strategy_failed, ("done",)),
    ("summing", OrdersSent): Transition(does.orders_sent_for_closed_phase, ("summing",)),
    ("summing", ReplyAccepted): Transition(does.reply_too_late, ("summing",)),
    ("summing", ReplyRefused): Transition(does.reply_too_late, ("summing",)),
    ("summing", DeadlinePassed): Transition(does.deadline_of_closed_phase, ("summing",)),
    ("summing", SiteConnected): Transition(does.site_connected, ("summing",)),
    ("summing", SiteLost): Transition(does.site_lost, ("summing",)),
    ("summing", StopRequested): Transition(does.stop, ("done",)),
    ("summing", RunFailed): Transition(does.fail, ("done",)),
    ("done", RunStarted): Transition(does.ignore, ("done",)),
    ("done", OrdersSent): Transition(does.ignore, ("done",)),
    ("done", ReplyAccepted): Transition(does.ignore, ("done",)),
    ("done", ReplyRefused): Transition(does.ignore, ("done",)),
    ("done", SiteConnected): Transition(does.ignore, ("done",)),
    ("done", SiteLost): Transition(does.ignore, ("done",)),
    ("done", DeadlinePassed): Transition(does.ignore, ("done",)),
    ("done", ModelAggregated): Transition(does.ignore, ("done",)),
    ("done", AggregationFailed): Transition(does.ignore, ("done",)),
    ("done", MetricsAggregated): Transition(does.ignore, ("done",)),
    ("done", StopRequested): Transition(does.ignore, ("done",)),
    ("done", RunFailed): Transition(does.ignore, ("done",)),
}
