"""Drives a run: what happens is fed to the machine, journalled, and only then acted upon.

One thread. It sleeps until the link rings (a reply, a site, a stop), a model was measured, or a
deadline passes; takes all that happened meanwhile and performs what the machine asks for. Events
are written together, in one commit, before the first thing that follows from them leaves this
process. Decides nothing. When the daemon is gone it ends without a word: the next daemon starts
the run's process again, and the journal says where to go on.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatchmethod
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError
from fedfactory.contracts.orders import WorkKind
from fedfactory.coordinator.aggregating.aggregation import AggregationError
from fedfactory.coordinator.running.asking import Asking
from fedfactory.coordinator.running.closing import Closing, aggregation_failed
from fedfactory.coordinator.running.link import LinkClosedError, LinkRing, Replied
from fedfactory.coordinator.running.measuring import Measured
from fedfactory.coordinator.running.resuming import resume
from fedfactory.coordinator.running.run_parts import RunParts
from fedfactory.coordinator.running.taking import Taking
from fedfactory.rounds.events import (
    Aggregate,
    AggregateMetrics,
    CentralMeasured,
    Command,
    DeadlinePassed,
    Event,
    Finish,
    MeasureCentrally,
    OrdersSent,
    RecordRound,
    ReplyAccepted,
    RunFailed,
    RunStarted,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLeft,
    SiteLost,
    StopRequested,
)

log = logging.getLogger("fedfactory.runner")

# What is taken at once: bounds the time from the first of a burst to its effect.
MAX_AT_ONCE: Final = 256
# A model above this takes long to make, so what is in is written first. Below it, the answers that
# close a round are written with the model that comes of them: one wait for the disk less.
LARGE_MODEL_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Told:
    """What was heard of already, so that it is not fed twice: every process of a run is told."""

    stops: set[float]
    left: set[str]


@dataclass(frozen=True, slots=True)
class _Deadline:
    round: int
    kind: WorkKind
    at: float  # time.monotonic() seconds


class Runner:
    """Drives one run from its first event, or from where its journal ends, to its summary."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts
        self._life = parts.life
        self._asking = Asking(parts)
        self._taking = Taking(parts, self._asking)
        self._closing = Closing(parts, self._asking)
        self._deadline: _Deadline | None = None
        self._told = _Told(stops=set(), left=set())
        self._unwritten: list[Event] = []
        self._unrecorded: list[RecordRound] = []
        self._finished = False

    def run(self) -> None:
        """Run to the end; summary.json is written last. Returns early when the daemon is gone.

        Raises:
            IntegrityError: the journal, or every model of the run, is damaged.
            EnvironmentFailedError, OSError: the disk or another program fails; start it again.
        """
        try:
            self._begin()
            self._feed(self._happened(0.0))  # a stop comes before what the run was stuck in
            while not self._finished:
                self._perform_all()
                if not self._finished:
                    self._settle()
                    self._feed(self._happened())
        except LinkClosedError as error:
            self._write()
            log.warning("the daemon is gone, the run's process ends: %s", error)

    def _begin(self) -> None:
        parts = self._parts
        connected = parts.connected
        recorded = parts.journal.events()
        for event in recorded:
            self._note(event)
        if recorded:
            resume(parts, recorded, connected)
        else:
            self._start(connected)

    def _start(self, connected: Sequence[str]) -> None:
        """Begin a run: wait for its sites, and tell the machine who is here."""
        settings = self._parts.settings
        also: list[Event] = []
        fault = self._parts.checkpoints.fault(settings.plan.terms.initial)
        if fault is not None:
            also.append(RunFailed(at=time.time(), reason=f"the initial model is {fault}"))
        here = set(connected)
        end = time.monotonic() + settings.start_timeout_s
        while True:
            ready = also or here.issuperset(settings.plan.terms.sites)
            timeout = 0.0 if ready else max(0.0, end - time.monotonic())
            try:  # also what was told before we came
                happening = self._parts.happenings.get(timeout=timeout)
            except queue.Empty:
                break
            for event in self._events_of([happening]):
                if isinstance(event, SiteConnected):
                    here.add(event.site)
                elif isinstance(event, SiteLost):
                    here.discard(event.site)
                else:
                    also.append(event)
        sites = tuple(sorted(here))
        started = RunStarted(at=time.time(), plan=settings.plan, connected=sites)
        self._feed([started, *also])

    # ---- events in -------------------------------------------------------------------------

    def _feed(self, events: Sequence[Event]) -> None:
        """Let the machine hear what happened; it is written before anything comes of it."""
        for event in events:
            if self._life.apply(event):
                self._unwritten.append(event)
                self._note(event)

    def _write(self) -> None:
        """Journal what is not journalled yet, all at once and durably; updates come before it."""
        if not self._unwritten:
            return
        if any(map(_has_upload, self._unwritten)):
            self._parts.link.sync_blobs()
        self._parts.journal.append(self._unwritten)
        self._unwritten.clear()

    def _settle(self) -> None:
        """Write, then tidy up after finished rounds: nobody waits for that."""
        self._write()
        for record in self._unrecorded:
            self._closing.record(record)
        self._unrecorded.clear()

    def _note(self, event: Event) -> None:
        if isinstance(event, StopRequested):
            self._told.stops.add(event.at)
        elif isinstance(event, SiteLeft):
            self._told.left.add(event.site)

    def _happened(self, at_most: float | None = None) -> list[Event]:
        """Wait until something happens, at most so many seconds; return all that did."""
        deadline = self._deadline
        timeout = at_most
        if deadline is not None and at_most is None:
            timeout = max(0.0, deadline.at - time.monotonic())
        happenings: list[LinkRing | Replied | Measured] = []
        try:
            happenings.append(self._parts.happenings.get(timeout=timeout))
            while len(happenings) < MAX_AT_ONCE:
                happenings.append(self._parts.happenings.get_nowait())
        except queue.Empty:
            pass
        return [*self._events_of(happenings), *self._passed()]

    def _passed(self) -> list[Event]:
        passed = self._deadline
        if passed is None or passed.at > time.monotonic():
            return []
        self._deadline = None
        return [DeadlinePassed(at=time.time(), round=passed.round, kind=passed.kind)]

    def _events_of(self, happenings: Sequence[LinkRing | Replied | Measured]) -> list[Event]:
        events = self._taking.take([one for one in happenings if isinstance(one, Replied)])
        for happening in happenings:
            event = None if isinstance(happening, Replied) else self._event_of(happening)
            if event is not None:
                events.append(event)
        return events

    def _event_of(self, happening: LinkRing | Measured) -> Event | None:
        now = time.time()
        if isinstance(happening, Measured):
            return CentralMeasured(at=now, round=happening.round, metrics=happening.metrics)
        ring = happening
        match ring.event:
            case "site_connected":
                return SiteConnected(at=now, site=ring.site)
            case "site_lost":
                return SiteLost(at=now, site=ring.site)
            case "site_left" if ring.site not in self._told.left:
                return SiteLeft(at=now, site=ring.site, code=ring.code)
            case "stop" if ring.at not in self._told.stops:
                self._told.stops.add(ring.at)
                return StopRequested(at=ring.at, reason=ring.reason, after_round=ring.after_round)
            case "closed":
                raise LinkClosedError
        return None

    # ---- commands out ----------------------------------------------------------------------

    def _perform_all(self) -> None:
        """Perform what is asked, in order; what an ended run no longer needs is left."""
        todo = self._life.todo
        while todo and not self._finished:
            command = todo.popleft()
            if self._life.state.phase == "done" and not isinstance(command, RecordRound | Finish):
                continue
            try:
                self._perform(command)
            except EnvironmentFailedError:
                raise
            except FedfactoryError as error:
                log.exception("a command could not be performed")
                if self._life.state.phase == "done":
                    raise
                self._feed([RunFailed(at=time.time(), reason=error.public_message)])

    @singledispatchmethod
    def _perform(self, command: Command) -> None:
        raise AssertionError(f"no way to perform {command}")

    @_perform.register
    def _(self, command: SendOrders) -> None:
        try:
            plans = self._life.standing.plans(command, self._life.state)
        except AggregationError as error:
            self._feed([aggregation_failed(self._life.state.round, error)])
            return
        if command.again and not plans:
            return  # the strategy had left these sites out
        sent = OrdersSent(
            at=time.time(), round=command.round, kind=command.kind, sites=tuple(sorted(plans))
        )
        self._feed([sent])
        self._write()
        self._asking.send(command, plans)

    @_perform.register
    def _(self, command: SetDeadline) -> None:
        self._deadline = _Deadline(command.round, command.kind, time.monotonic() + command.after_s)

    @_perform.register
    def _(self, command: Aggregate) -> None:
        model = self._life.state.model
        if model is not None and model.bytes > LARGE_MODEL_BYTES:
            self._write()
        self._feed([self._closing.aggregate(command)])

    @_perform.register
    def _(self, command: AggregateMetrics) -> None:
        self._feed([self._closing.combine(command)])

    @_perform.register
    def _(self, command: MeasureCentrally) -> None:
        measured = self._closing.measure(command)
        if measured is not None:
            self._feed([measured])

    @_perform.register
    def _(self, command: RecordRound) -> None:
        self._unrecorded.append(command)

    @_perform.register
    def _(self, command: Finish) -> None:
        self._settle()
        self._closing.finish(command)
        self._finished = True


def _has_upload(event: Event) -> bool:
    return isinstance(event, ReplyAccepted) and event.update.payload is not None
