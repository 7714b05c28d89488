"""Performs what the round machine asks for and feeds back what happened; decides nothing.

One thread. It sleeps until the link rings (a reply, a site, a stop) or a deadline passes. Every
event is appended to events.jsonl before the machine sees it, so the file replays the run.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import singledispatchmethod
from pathlib import Path
from typing import Final

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, ProtocolError
from fedfactory.contracts.model import ModelSpec
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD, Order, WorkKey, WorkKind
from fedfactory.contracts.plans import Delivery, SignedEnding
from fedfactory.contracts.updates import Reply, Update
from fedfactory.coordinator.aggregation import (
    Aggregation,
    AggregationError,
    SitePlan,
    verify_update,
)
from fedfactory.coordinator.anchors import Anchors
from fedfactory.coordinator.link import Link
from fedfactory.coordinator.ordering import Orders
from fedfactory.coordinator.run_files import MODEL, RunFiles
from fedfactory.coordinator.settings import RunSettings
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
    RunStarted,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLost,
    StopRequested,
)
from fedfactory.rounds.history import History, append
from fedfactory.rounds.machine import RunState, step
from fedfactory.rounds.summary import metrics_line, summary
from fedfactory.wire.arrays import ArrayFile

log = logging.getLogger("fedfactory.runner")

REASON_WAIT_S: Final = 1.0
ENDING_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """One order under way: what it is the key of, and the Flower message that carries it."""

    key: WorkKey
    message_id: str


@dataclass(frozen=True, slots=True)
class _Deadline:
    round: int
    kind: WorkKind
    at: float  # time.monotonic() seconds


class Runner:
    """Drives one run from RunStarted to Finish."""

    def __init__(
        self,
        *,
        grid: Grid,
        link: Link,
        files: RunFiles,
        settings: RunSettings,
        orders: Orders,
        anchors: Anchors,
        roster: Mapping[str, int],
        aggregation: Aggregation,
    ) -> None:
        self._grid = grid
        self._link = link
        self._files = files
        self._settings = settings
        self._orders = orders
        self._anchors = anchors
        self._roster = roster
        self._aggregation = aggregation
        self._state = RunState.new()
        self._history = History.new()
        self._todo: deque[Command] = deque()
        self._asked: dict[str, _Asked] = {}  # message id -> order under way
        self._plans: dict[tuple[int, WorkKind, str], SitePlan] = {}
        self._evaluations: dict[str, Update] = {}
        self._round_blobs: list[str] = []
        self._deadline: _Deadline | None = None
        self._spec: ModelSpec = ModelSpec(tensors=())
        self._model = settings.initial
        self._finished = False

    def run(self) -> None:
        """Run to the end; summary.json is written last."""
        source = Path(self._settings.initial_file)
        with ArrayFile(source) as file:
            self._spec = file.spec
        self._link.adopt(source, self._settings.initial)
        connected = self._wait_for_sites()
        self._feed(
            RunStarted(at=time.time(), plan=self._settings.plan, model=self._settings.initial)
        )
        for site in connected:
            self._feed(SiteConnected(at=time.time(), site=site))
        self._perform_all()
        while not self._finished:
            self._wait()
            self._perform_all()

    # ---- events in -------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        self._files.event(event)
        self._history = append(self._history, event)
        self._state, commands = step(self._state, event)
        self._todo.extend(commands)

    def _perform_all(self) -> None:
        """Perform what is asked; whatever breaks outside the rounds ends the run with a reason."""
        while self._todo and not self._finished:
            try:
                self._perform(self._todo.popleft())
            except (OSError, httpx.HTTPError, FedfactoryError) as error:
                log.exception("a command could not be performed")
                if self._state.phase == "done":
                    raise
                reason = self._told_reason() or f"the coordinator broke: {error}"
                self._feed(RunFailed(at=time.time(), reason=reason))

    def _told_reason(self) -> str:
        """Return what the gateway says broke: it knows better than the call that failed."""
        end = time.monotonic() + REASON_WAIT_S
        with contextlib.suppress(queue.Empty):
            while True:
                ring = self._link.events.get(timeout=max(0.0, end - time.monotonic()))
                if ring.event == "failed":
                    return ring.reason
        return ""

    def _wait_for_sites(self) -> list[str]:
        """Wait until every site of the plan is connected, or the start timeout; return who is."""
        end = time.monotonic() + self._settings.start_timeout_s
        connected = set(self._link.connected())
        while not connected.issuperset(self._settings.plan.sites):
            try:
                ring = self._link.events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if ring.event == "site_connected":
                connected.add(ring.site)
            elif ring.event == "site_lost":
                connected.discard(ring.site)
            elif ring.event in ("stop", "failed", "closed"):
                self._link.events.put(ring)
                break
        return sorted(connected.intersection(self._settings.plan.sites))

    def _wait(self) -> None:
        timeout = None if self._deadline is None else self._deadline.at - time.monotonic()
        try:
            ring = self._link.events.get(timeout=None if timeout is None else max(0.0, timeout))
        except queue.Empty:
            assert self._deadline is not None
            passed, self._deadline = self._deadline, None
            self._feed(DeadlinePassed(at=time.time(), round=passed.round, kind=passed.kind))
            return
        now = time.time()
        match ring.event:
            case "reply":
                self._pull_reply(ring.message)
            case "site_connected" if ring.site in self._settings.plan.sites:
                self._feed(SiteConnected(at=now, site=ring.site))
            case "site_lost" if ring.site in self._settings.plan.sites:
                self._feed(SiteLost(at=now, site=ring.site))
            case "stop":
                self._feed(StopRequested(at=now, reason=ring.reason))
            case "failed" | "closed":
                self._feed(RunFailed(at=now, reason=ring.reason or "the gateway stopped"))

    def _pull_reply(self, message_id: str) -> None:
        for message in self._grid.pull_messages([message_id]):
            asked = self._asked.pop(message.metadata.reply_to_message_id, None)
            if asked is None:
                continue
            if message.has_content():
                self._take(asked.key, message)
            elif asked.key.site not in self._state.offline:
                # An error is Flower's own: it had given the node up, and the reply is gone. A site
                # that is away is asked when it is back.
                self._feed(SiteConnected(at=time.time(), site=asked.key.site))

    def _take(self, key: WorkKey, message: Message) -> None:
        try:
            reply = from_json(
                Reply, str(message.content.config_records[MESSAGE_RECORD][MESSAGE_FIELD])
            )
        except (ProtocolError, KeyError):
            self._refused(key, "bad_reply", "")  # what it says is the site's text: not repeated
            return
        if reply.work != key:
            self._refused(key, "bad_reply", "it names other work than was asked for")
            return
        if reply.anchor is not None:
            self._anchors.keep(key.site, reply.anchor)
        if reply.refusal is not None:
            self._refused(key, reply.refusal.code, "")
            return
        assert reply.update is not None
        self._take_update(key, reply.update)

    def _take_update(self, key: WorkKey, update: Update) -> None:
        first = self._state.awaits(key.round, key.kind, key.site)
        if update.payload is not None:
            path = self._link.blob_path(update.payload.blob.digest)
            # Only what this very site sent counts: it may not name another's blob, nor the base.
            if not self._link.claim(key.site, update.payload.blob.digest):
                self._refused(key, "missing_update", "")
                return
            if found := verify_update(path, self._spec):
                self._refused(key, *found)
                self._link.discard([update.payload.blob.digest])
                return
            self._round_blobs.append(update.payload.blob.digest)
            if first:
                self._aggregation.offer(key.site, update, path)
        elif first:
            self._evaluations[key.site] = update
        self._feed(
            ReplyAccepted(
                at=time.time(),
                round=key.round,
                kind=key.kind,
                site=key.site,
                payload=update.payload,
                examples=update.examples,
                metrics=update.metrics,
                seconds=update.seconds,
                privacy=update.privacy,
            )
        )

    def _refused(self, key: WorkKey, code: str, detail: str) -> None:
        if key.kind == "train" and self._state.awaits(key.round, key.kind, key.site):
            self._aggregation.resolve_absent(key.site)
        self._feed(
            ReplyRefused(
                at=time.time(),
                round=key.round,
                kind=key.kind,
                site=key.site,
                code=code,
                detail=detail,
            )
        )

    # ---- commands out ----------------------------------------------------------------------

    @singledispatchmethod
    def _perform(self, command: Command) -> None:
        raise AssertionError(f"no way to perform {command}")

    @_perform.register
    def _(self, command: SendOrders) -> None:
        if not command.again and not self._plan(command):
            return
        sites = tuple(
            site for site in command.sites if (command.round, command.kind, site) in self._plans
        )
        plans = {site: self._plans[command.round, command.kind, site] for site in sites}
        orders = {
            site: self._orders.order(command.round, command.kind, plan)
            for site, plan in plans.items()
        }
        self._link.offer({site: order.base.digest for site, order in orders.items()})
        messages = [self._order_message(site, order) for site, order in orders.items()]
        sent = self._grid.push_messages(messages)
        for order, message_id in zip(orders.values(), sent, strict=True):
            if message_id:  # None: the node never came online; it is asked when it does
                self._asked[message_id] = _Asked(order.key(), message_id)
        self._link.ring(sites)
        self._feed(OrdersSent(at=time.time(), round=command.round, kind=command.kind, sites=sites))

    def _plan(self, command: SendOrders) -> bool:
        path = self._link.blob_path(command.model.digest)
        self._plans.clear()
        try:
            if command.kind == "train":
                plans = self._aggregation.plan_train(
                    command.round, command.model, path, command.sites
                )
                self._aggregation.open_round(
                    command.round, path, tuple(plan.site for plan in plans)
                )
            else:
                self._evaluations.clear()
                plans = self._aggregation.plan_evaluate(
                    command.round, command.model, path, command.sites
                )
        except AggregationError as error:
            self._feed(
                AggregationFailed(at=time.time(), round=command.round, reason=error.public_message)
            )
            return False
        for plan in plans:
            self._plans[command.round, command.kind, plan.site] = plan
            if plan.base != command.model and plan.base.digest not in self._round_blobs:
                self._link.adopt(plan.base_path, plan.base)
                self._round_blobs.append(plan.base.digest)
        return True

    def _order_message(self, site: str, order: Order) -> Message:
        ttl = self._settings.plan.deadline_s
        delivery = self._orders.delivery(order, time.time() + ttl)
        return self._message(site, order.kind, delivery, order.round, ttl + 60.0)

    def _message(
        self, site: str, kind: str, content: Delivery | SignedEnding, group: int, ttl: float
    ) -> Message:
        return Message(
            RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: to_json(content)})}),
            dst_node_id=self._roster[site],
            message_type=kind,
            group_id=str(group),
            ttl=ttl,
        )

    @_perform.register
    def _(self, command: SetDeadline) -> None:
        self._deadline = _Deadline(command.round, command.kind, time.monotonic() + command.after_s)

    @_perform.register
    def _(self, command: Aggregate) -> None:
        self._asked.clear()
        out = self._link.staging / f"round-{command.round}.safetensors"
        try:
            model = self._aggregation.close(out, command.sites)
        except AggregationError as error:
            self._feed(
                AggregationFailed(at=time.time(), round=command.round, reason=error.public_message)
            )
            return
        self._link.adopt(out, model)
        self._round_blobs.append(self._model.digest)
        self._model = model
        self._feed(ModelAggregated(at=time.time(), round=command.round, model=model))

    @_perform.register
    def _(self, command: AggregateMetrics) -> None:
        updates = {site: self._evaluations[site] for site in command.sites}
        try:
            metrics = self._aggregation.aggregate_metrics(command.round, updates)
        except AggregationError as error:
            self._feed(
                AggregationFailed(at=time.time(), round=command.round, reason=error.public_message)
            )
            return
        self._feed(MetricsAggregated(at=time.time(), round=command.round, metrics=metrics))

    @_perform.register
    def _(self, command: RecordRound) -> None:
        self._files.metrics(metrics_line(self._history, command.round))
        self._asked.clear()
        spent = [digest for digest in self._round_blobs if digest != self._model.digest]
        self._link.discard(spent)
        self._round_blobs.clear()

    @_perform.register
    def _(self, command: Finish) -> None:
        self._finished = True
        if self._settings.plan.privacy is not None:
            try:
                self._end()
            except (OSError, httpx.HTTPError, FedfactoryError):
                log.exception("the sites could not be told that the run is over")
        self._files.model(self._link.blob_path(command.model.digest))
        self._files.summary(
            summary(self._history, command, traffic=self._link.traffic(), model_file=MODEL)
        )

    def _end(self) -> None:
        """Tell the sites that are connected that the run is over, so that their holds return."""
        sites = [site for site in self._link.connected() if site in self._settings.plan.sites]
        messages = [
            self._message(site, "query", self._orders.ending(site), 0, ENDING_WAIT_S)
            for site in sites
        ]
        waiting = {sent for sent in self._grid.push_messages(messages) if sent}
        self._link.ring(sites)
        end = time.monotonic() + ENDING_WAIT_S
        while waiting and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                ring = self._link.events.get(timeout=left)
                if ring.event == "reply":
                    for message in self._grid.pull_messages([ring.message]):
                        waiting.discard(message.metadata.reply_to_message_id)
                elif ring.event in {"failed", "closed"}:
                    return
