"""What a run's journal shows of each site in each round, as numbers of its events. Pure.

In async mode a round is a model, while an order may last for several: it counts in each of them
until it is answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from fedfactory.rounds.events import (
    CheckpointLost,
    DeadlinePassed,
    Event,
    ModelAggregated,
    OrdersSent,
    ReplyAccepted,
    ReplyRefused,
    RunReopened,
    RunResumed,
    RunStarted,
    SiteConnected,
    SiteLeft,
    SiteLost,
    StopRequested,
    UpdateRefused,
)
from fedfactory.rounds.history import History, append


@dataclass(frozen=True, slots=True)
class Seen:
    """An event's number (from 0) and time (Unix seconds)."""

    number: int
    at: float


@dataclass(slots=True)
class Facts:
    """What is gathered of one site in one round; `late_code` is of a refusal that came late."""

    offline: Seen | None = None
    left: Seen | None = None
    sent: Seen | None = None
    answer: Seen | None = None
    refused: list[Seen] = field(default_factory=list)
    late: Seen | None = None
    late_code: str | None = None

    def come_late(self, seen: Seen, code: str | None) -> None:
        """Note the first answer that came too late."""
        if self.late is None:
            self.late, self.late_code = seen, code


@dataclass(slots=True)
class _Order:
    """The last order that a site got in an async run and has not fulfilled."""

    number: int
    sent: Seen
    refused: list[Seen] = field(default_factory=list)


@dataclass(slots=True)
class Reading:
    """A journal as read: `closed` tells when each round's training ended, `last` the last event."""

    history: History = field(default_factory=History.new)
    closed: dict[int, Seen] = field(default_factory=dict)
    last: Seen = field(default_factory=lambda: Seen(0, 0.0))
    _facts: dict[tuple[int, str], Facts] = field(default_factory=dict)
    _offline: dict[str, Seen] = field(default_factory=dict)
    _left: dict[str, Seen] = field(default_factory=dict)
    _orders: dict[str, _Order] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Self:
        """Read a journal."""
        reading = cls()
        for number, event in enumerate(events):
            reading._read(Seen(number, event.at), event)
        if reading.history.current is not None:
            reading._mark_standing(reading.history.current.number)
        return reading

    def facts(self, number: int, site: str) -> Facts:
        """Return what is known of a site in a round."""
        return self._facts.setdefault((number, site), Facts())

    @property
    def _is_async(self) -> bool:
        plan = self.history.plan
        return plan is not None and plan.is_async

    def _read(self, seen: Seen, event: Event) -> None:
        before = self.history.state
        self.history = append(self.history, event)
        if before.phase == "done" and not isinstance(event, RunReopened):
            return
        self.last = seen
        self._read_presence(seen, event)
        state = self.history.state
        if isinstance(event, RunReopened | CheckpointLost):
            self._forget_after(state.finished[-1].round)
        if isinstance(event, RunReopened):
            self._left = {}  # who is still cut off is told again
        if isinstance(event, OrdersSent | ReplyAccepted | ReplyRefused) and event.kind == "train":
            number = before.round if self._is_async else event.round
            if isinstance(event, OrdersSent):
                self._read_orders(seen, event, number)
            else:
                counts = state.outcome in ("counted", "refused", "gave_up")
                self._read_answer(seen, event, self.facts(number, event.site), counts=counts)
        elif isinstance(event, UpdateRefused):
            number = before.round if self._is_async else event.round
            self.facts(number, event.site).refused.append(seen)
        elif isinstance(event, ModelAggregated):
            self.closed.setdefault(event.round, seen)
        if before.phase == "training" and state.phase != "training":
            self.closed[before.round] = seen
        closes = isinstance(event, ModelAggregated | StopRequested)
        closes = closes or (isinstance(event, DeadlinePassed) and not self._is_async)
        if closes or state.phase == "done" or state.round != before.round:
            self._mark_standing(before.round)

    def _forget_after(self, last: int) -> None:
        """Forget the rounds after round `last`: they are made again."""
        self._facts = {key: facts for key, facts in self._facts.items() if key[0] <= last}
        self.closed = {number: seen for number, seen in self.closed.items() if number <= last}
        if not self._is_async:
            self._orders = {}

    def _read_orders(self, seen: Seen, event: OrdersSent, number: int) -> None:
        for site in event.sites:
            order = self._orders.get(site)
            if order is None or order.number != event.round:
                order = self._orders[site] = _Order(event.round, seen)
            facts = self.facts(number, site)
            facts.sent = facts.sent or order.sent

    def _read_answer(
        self, seen: Seen, event: ReplyAccepted | ReplyRefused, facts: Facts, *, counts: bool
    ) -> None:
        order = self._orders.get(event.site)
        if not counts:
            facts.come_late(seen, getattr(event, "code", None))
        elif isinstance(event, ReplyRefused):
            facts.refused.append(seen)
            if order is not None:
                order.refused.append(seen)
        else:
            facts.answer = seen
            if order is not None and order.number == event.round:
                facts.sent = facts.sent or order.sent
                del self._orders[event.site]

    def _read_presence(self, seen: Seen, event: Event) -> None:
        match event:
            case RunStarted(plan=plan, connected=connected):
                self._offline = {s: seen for s in plan.terms.sites if s not in connected}
            case RunResumed(connected=connected):
                resumed = self.history.plan
                sites = resumed.terms.sites if resumed is not None else ()
                self._offline = {
                    site: self._offline.get(site, seen) for site in sites if site not in connected
                }
            case SiteConnected(site=site):
                self._offline.pop(site, None)
            case SiteLost(site=site):
                self._offline.setdefault(site, seen)
            case SiteLeft(site=site):
                self._left.setdefault(site, seen)

    def _mark_standing(self, number: int) -> None:
        """Note, while a round's training closes, who is away, and which orders are out."""
        for site, seen in self._offline.items():
            facts = self.facts(number, site)
            facts.offline = facts.offline or seen
        for site, seen in self._left.items():
            facts = self.facts(number, site)
            facts.left = facts.left or seen
        for site, order in self._orders.items() if self._is_async else ():
            facts = self.facts(number, site)
            facts.sent = facts.sent or order.sent
            facts.refused = facts.refused or list(order.refused)
