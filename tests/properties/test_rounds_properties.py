"""Whatever happens, in whatever order: nothing is counted twice, and every run ends."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

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
    RunResumed,
    RunStarted,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLeft,
    SiteLost,
    StopRequested,
)
from fedfactory.rounds.history import History, append
from fedfactory.rounds.machine import RunState, replay, step
from fedfactory.rounds.parts import parts_of
from tests.run_events import accepted
from tests.run_plans import blob, run_plan

SITES = ("a", "b", "c", "d")
site_names = st.sampled_from(SITES)


class Life(RuleBasedStateMachine):
    """A world that performs commands late, loses and repeats messages, and rings stale timers."""

    def __init__(self) -> None:
        super().__init__()
        self.state = RunState.new()
        self.log: list[Event] = []
        self.history = History.new()
        self.commands: list[Command] = []
        self.to_send: list[SendOrders] = []
        self.to_make: list[Command] = []
        self.deadlines: list[SetDeadline] = []
        self.models = [blob(0)]
        self.counted: set[tuple[int, str, str]] = set()
        self.aggregated_rounds: list[int] = []

    def feed(self, event: Event) -> None:
        before = self.state
        self.log.append(event)
        self.history = append(self.history, event)
        self.state, commands = step(self.state, event)
        self.commands.extend(commands)
        if isinstance(event, ReplyAccepted | ReplyRefused):
            self.check_counting(before, event)
        for command in commands:
            if isinstance(command, SendOrders):
                self.to_send.append(command)
            elif isinstance(command, SetDeadline):
                self.deadlines.append(command)
            elif isinstance(command, Aggregate):
                sites = [taken.site for taken in command.updates]
                assert len(sites) >= self.plan.rules.quorum
                assert set(self.plan.rules.required) <= set(sites)
                assert sites == sorted(set(sites))
                assert all(taken.staleness == 0 for taken in command.updates)
                assert sites == list(self.state.sites("train", "accepted"))
                if command.round not in self.aggregated_rounds[-1:]:  # again after a death
                    self.aggregated_rounds.append(command.round)
                self.to_make.append(command)
            elif isinstance(command, AggregateMetrics):
                assert command.sites
                self.to_make.append(command)

    def check_counting(self, before: RunState, event: ReplyAccepted | ReplyRefused) -> None:
        key = (event.round, event.kind, event.site)
        counts = before.awaits(event.round, event.kind, event.site)
        assert counts == (self.state.outcome in ("counted", "refused", "gave_up"))
        if counts:
            # A failure that passes leaves the site awaited: only an update counts, and once.
            assert key not in self.counted
            if isinstance(event, ReplyAccepted):
                self.counted.add(key)
        else:
            assert (self.state.sync.train, self.state.sync.evaluate) == (
                before.sync.train,
                before.sync.evaluate,
            )

    @initialize(
        rounds=st.integers(1, 3),
        quorum=st.integers(1, 2),
        required=st.lists(site_names, max_size=2, unique=True),
        evaluate=st.booleans(),
        lateness_s=st.sampled_from([0.0, 1.0]),
        retries=st.integers(0, 2),
        select=st.sampled_from(["all", "random", "size", "availability", "round_robin"]),
        extra=st.integers(0, 2),
        here=st.sets(site_names),
    )
    def start(self, select: str, extra: int, here: set[str], **rules: Any) -> None:
        if select != "all":
            rules.update(per_round=2, extra=extra)
        rules["required"] = tuple(sorted(rules["required"]))
        self.plan = run_plan(sites=SITES, deadline_s=1.0, select=select, **rules)
        connected = tuple(sorted(here))
        self.feed(RunStarted(at=0.0, plan=self.plan, connected=connected))

    @precondition(lambda self: self.to_send)
    @rule(chosen=st.sets(site_names), everyone=st.booleans())
    def send(self, chosen: set[str], everyone: bool) -> None:
        order = self.to_send.pop(0)
        sites = tuple(s for s in order.sites if order.again or everyone or s in chosen)
        self.feed(OrdersSent(at=1.0, round=order.round, kind=order.kind, sites=sites))

    @precondition(lambda self: self.deadlines)
    @rule(
        site=site_names,
        which=st.integers(0, 20),
        accept=st.booleans(),
        code=st.sampled_from(["work_failed", "transfer_failed", "policy_task"]),
    )
    def answer(self, site: str, which: int, accept: bool, code: str = "work_failed") -> None:
        asked = self.deadlines[-1 - which % len(self.deadlines)]
        if not accept:
            self.feed(
                ReplyRefused(
                    at=2.0, round=asked.round, kind=asked.kind, site=site,
                    code=code, detail="",
                )
            )  # fmt: skip
            return
        self.feed(accepted(site, asked.kind, asked.round, at=2.0, blob=blob(7), metrics={}))

    @precondition(lambda self: self.state.phase in ("training", "evaluating"))
    @rule(accept=st.lists(st.booleans(), min_size=len(SITES), max_size=len(SITES)))
    def everyone_answers(self, accept: list[bool]) -> None:
        for site, good in zip(SITES, accept, strict=True):
            self.answer(site, 0, good)

    @rule(site=site_names, back=st.booleans())
    def come_or_go(self, site: str, back: bool) -> None:
        self.feed(SiteConnected(at=3.0, site=site) if back else SiteLost(at=3.0, site=site))

    @precondition(lambda self: self.deadlines)
    @rule(which=st.integers(0, 20))
    def timer(self, which: int) -> None:
        rung = self.deadlines[which % len(self.deadlines)]
        self.feed(DeadlinePassed(at=4.0, round=rung.round, kind=rung.kind))

    @precondition(lambda self: self.to_make)
    @rule(fails=st.integers(0, 9))
    def make(self, fails: int) -> None:
        command = self.to_make.pop(0)
        assert isinstance(command, Aggregate | AggregateMetrics)
        if fails == 0:
            self.feed(AggregationFailed(at=5.0, round=command.round, reason="no"))
        elif isinstance(command, Aggregate):
            self.models.append(blob(len(self.models)))
            model = self.models[-1]
            self.feed(ModelAggregated(at=5.0, round=command.round, model=model, state=None))
        else:
            self.feed(MetricsAggregated(at=5.0, round=command.round, metrics={"loss": 1.0}))

    @precondition(lambda self: len(self.log) > 12)
    @rule(broken=st.booleans())
    def end_early(self, broken: bool) -> None:
        if broken:
            self.feed(RunFailed(at=6.0, reason="disk full"))
        else:
            self.feed(StopRequested(at=6.0, reason="asked", after_round=False))

    @precondition(lambda self: self.log and self.state.phase != "done")
    @rule(here=st.sets(site_names))
    def die_and_go_on(self, here: set[str]) -> None:
        """What was asked for and not done is forgotten; the machine asks for it again."""
        self.to_send.clear()
        self.to_make.clear()
        self.feed(RunResumed(at=7.0, connected=tuple(sorted(here))))

    @precondition(lambda self: len(self.log) > 20)
    @rule(site=site_names)
    def leave(self, site: str) -> None:
        self.feed(SiteLeft(at=8.0, site=site, code="revoked"))

    @invariant()
    def a_run_ends_once_with_a_model_that_was_reported(self) -> None:
        ends = [c for c in self.commands if isinstance(c, Finish)]
        assert len(ends) <= 1
        assert all(end.model in self.models for end in ends)
        assert (self.state.phase == "done") == bool(ends)
        if ends:
            assert self.commands[-1] is ends[0]
            assert self.state.ended == ends[0]

    @invariant()
    def rounds_come_in_order_and_are_aggregated_once(self) -> None:
        assert self.aggregated_rounds == list(range(1, len(self.aggregated_rounds) + 1))
        found = [c.round for c in self.commands if isinstance(c, RecordRound)]
        assert found == sorted(found)
        recorded = sorted(set(found))  # a death may come before it is done
        assert recorded == list(range(1, len(recorded) + 1))
        assert set(recorded) <= set(self.aggregated_rounds)

    @invariant()
    def the_log_gives_the_state(self) -> None:
        assert replay(self.log) == self.state

    @invariant()
    def the_parts_are_those_of_the_records(self) -> None:
        current = self.history.current
        if current is not None and not self.plan.is_async:
            assert current.parts == parts_of(self.state.sync.train)
            assert (current.evaluations or {}) == parts_of(self.state.sync.evaluate)

    def teardown(self) -> None:
        """With every message lost from here on, deadlines alone bring the run to its end."""
        for _ in range(40 * self.plan.terms.rounds if self.log else 0):
            if self.to_make:
                self.make(fails=1)
            elif self.state.phase != "done":
                rung = self.deadlines[-1]
                self.feed(DeadlinePassed(at=9.0, round=rung.round, kind=rung.kind))
        assert not self.log or self.state.phase == "done"
        self.a_run_ends_once_with_a_model_that_was_reported()


Life.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLife = Life.TestCase
