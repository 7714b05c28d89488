"""A run as its ServerApp knows it: the machine's state, the story for people, the strategy's side.

`apply` is the one way in, for an event that just happened and for one that a journal replays; what
is asked in return waits in `todo`. Performs nothing itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from fedfactory.coordinator.running.ordering import Orders
from fedfactory.coordinator.running.standing import (
    Claim,
    Standing,
    claims_of,
    is_async,
    waiting_updates,
)
from fedfactory.rounds.asking import may_recover
from fedfactory.rounds.events import (
    CheckpointLost,
    Command,
    Event,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunReopened,
    RunStarted,
    UpdateRefused,
)
from fedfactory.rounds.history import History, append
from fedfactory.rounds.machine import RunState, step


class Life:
    """State, history, standing and open commands of one run.

    While a journal replays (`replaying`), the strategy hears nothing: it catches up afterwards.
    `claims` are the uploads that the gateway keeps for us.
    """

    def __init__(self, standing: Standing, orders: Orders) -> None:
        self.state = RunState.new()
        self.history = History.new()
        self.standing = standing
        self.todo: deque[Command] = deque()
        self.replaying = False
        self.claims: set[Claim] = set()
        self._orders = orders

    def apply(self, event: Event) -> None:
        """Take an event."""
        before = self.state
        self.state, commands = step(before, event)
        self.history = append(self.history, event)
        self.todo.extend(commands)
        if isinstance(event, OrdersSent):
            self._orders.count(event)
        elif before.phase != "done" or isinstance(event, RunReopened):
            self._count_models(event)
            if not self.replaying:
                self._tell_strategy(event, before)

    def _count_models(self, event: Event) -> None:
        if isinstance(event, ModelAggregated | CheckpointLost):
            self.standing.models_made = event.round
        elif isinstance(event, RunReopened):
            self.standing.models_made = self.state.finished[-1].round

    def _tell_strategy(self, event: Event, before: RunState) -> None:
        standing = self.standing
        if isinstance(event, ReplyAccepted | ReplyRefused):
            counts = before.awaits(event.round, event.kind, event.site)
            if not counts or event.kind == "evaluate":
                return
            if isinstance(event, ReplyAccepted):
                standing.offer(event, self._version(event, before))
            elif self._gave_up(event.site):
                standing.resolve_absent(event.site)
        elif isinstance(event, UpdateRefused) and self.state.phase != "done":
            standing.open_again(self.state)
        elif isinstance(event, RunStarted | ModelAggregated) and is_async(self.state):
            standing.open_async(self.state)

    def holds(self, answer: ReplyAccepted) -> bool:
        """Whether this very answer is in: a site asked again in mid-reply gives it twice."""
        state = self.state
        waiting = (update.answer for update in state.waiting)
        known = (*state.answers("train"), *state.answers("evaluate"), *waiting)
        return any(
            found.site == answer.site and replace(found, at=answer.at) == answer for found in known
        )

    def _gave_up(self, site: str) -> bool:
        """Whether a site's refusal is its last word in the sync round under way."""
        refused = site in self.state.sites("train", "refused")
        return refused and not may_recover(self.state, site)

    def _version(self, event: ReplyAccepted, before: RunState) -> int:
        """Return the number of the model that an update started from."""
        if not is_async(before):
            return self.standing.models_made
        (found,) = (
            order.version
            for order in before.under_way
            if (order.site, order.number) == (event.site, event.round)
        )
        return found

    def spent_claims(self) -> set[Claim]:
        """Return the uploads that no model to come needs, and count them as given up."""
        spent = self.claims - claims_of(waiting_updates(self.state))
        self.claims -= spent
        return spent
