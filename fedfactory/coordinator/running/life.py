"""A run as its process knows it: the machine's state, the story for people, the strategy's side.

`apply` is the one way in, for an event that just happened and for one that a journal replays; what
is asked in return waits in `todo`. Performs nothing itself.
"""

from __future__ import annotations

from collections import deque

from fedfactory.coordinator.running.ordering import Orders
from fedfactory.coordinator.running.standing import (
    Claim,
    Standing,
    claims_of,
    is_async,
    waiting_updates,
)
from fedfactory.rounds.events import (
    Command,
    Event,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunStarted,
    UpdateRefused,
)
from fedfactory.rounds.history import History, advance
from fedfactory.rounds.machine import RunState


class Life:
    """State, history, standing and open commands of one run.

    While a journal replays (`replaying`), the strategy hears nothing: it catches up afterwards.
    `claims` are the uploads that the gateway keeps for us.
    """

    def __init__(self, standing: Standing, orders: Orders) -> None:
        self.history = History.new()
        self.standing = standing
        self.todo: deque[Command] = deque()
        self.replaying = False
        self.claims: set[Claim] = set()
        self._orders = orders

    @property
    def state(self) -> RunState:
        """The machine's state."""
        return self.history.state

    def apply(self, event: Event) -> bool:
        """Take an event. Return False, and change nothing, if it repeats an accepted answer."""
        history, commands = advance(self.history, event)
        if history.state.outcome == "repeated":
            return False
        self.history = history
        self.todo.extend(commands)
        if isinstance(event, OrdersSent):
            self._orders.count(event)
        elif not self.replaying and self.state.phase != "done":
            self._tell_strategy(event)
        return True

    def _tell_strategy(self, event: Event) -> None:
        state, standing = self.state, self.standing
        match event, state.outcome:
            case ReplyAccepted(kind="train"), "counted":
                standing.offer(event, state)
            case ReplyRefused(kind="train", site=site), "gave_up":
                standing.resolve_absent(site)
            case UpdateRefused(), "applied":
                standing.open_again(state)
            case RunStarted() | ModelAggregated(), _ if is_async(state):
                standing.open_async(state)

    def spent_claims(self) -> set[Claim]:
        """Return the uploads that no model to come needs, and count them as given up."""
        spent = self.claims - claims_of(waiting_updates(self.state))
        self.claims -= spent
        return spent
