"""Killed anywhere, a run goes on from its journal and reaches the model of the undisturbed one."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.run_plan import RunPlan
from fedfactory.rounds.events import (
    Aggregate,
    CheckpointLost,
    ModelAggregated,
    RunFailed,
    RunResumed,
    Taken,
    UpdateLost,
)
from fedfactory.rounds.explanation import explain
from fedfactory.rounds.history import History, append
from fedfactory.rounds.keeping import needed
from fedfactory.rounds.machine import RunState, step
from fedfactory.rounds.summary import summary
from tests.run_plans import run_plan
from tests.run_world import World

SITES = ("a", "b", "c", "d")
PLANS: dict[str, dict[str, Any]] = {
    "everybody": {"quorum": 4},
    "without evaluation": {"quorum": 4, "evaluate": False},
    "central": {"quorum": 4, "central": True, "keep": "best", "checkpoints": 1},
    "central alone": {"quorum": 4, "central": True, "evaluate": False},
    "random": {"quorum": 2, "select": "random", "per_round": 2},
    "round robin": {"quorum": 2, "select": "round_robin", "per_round": 2, "required": ("b",)},
    "patience": {"quorum": 4, "patience": 2, "rounds": 9},
}
ASYNC: dict[str, dict[str, Any]] = {
    "async": {"mode": "async", "quorum": 1, "buffer": 2, "retries": 3},
    "async, central": {
        "mode": "async",
        "quorum": 1,
        "buffer": 3,
        "central": True,
        "checkpoints": 1,
    },
    "async, one": {"mode": "async", "quorum": 1, "buffer": 1, "evaluate": False},
    "async, all": {"mode": "async", "quorum": 1, "buffer": 4},  # no order may be wasted
}

BREAKS = (RunResumed, CheckpointLost, UpdateLost)


def plan_named(name: str) -> RunPlan:
    return run_plan(
        **{"sites": SITES, "rounds": 4, "retries": 3, **PLANS.get(name, ASYNC.get(name, {}))}
    )


@cache
def undisturbed(name: str) -> World:
    world = World(plan_named(name), random.Random(0))
    world.start()
    world.run()
    return world


def aggregates(world: World) -> list[tuple[Taken, ...]]:
    """What entered each model that counts, by the journal alone: the last of each round."""
    state, found = RunState.new(), {}
    for event in world.journal:
        if isinstance(event, ModelAggregated) and state.phase in ("aggregating", "merging"):
            found[event.round] = state.taking
        state, _ = step(state, event)
    return [found[number] for number in sorted(found)]


def disturbed(plan: RunPlan, seed: int, *, losses: bool, refuse: float = 0.1) -> World:
    """A run into which a death, a loss or a cut breaks now and then."""
    chance = random.Random(seed)
    world = World(plan, chance, refuse=refuse)
    world.start()
    away: set[str] = set()
    for _ in range(400):
        if world.over:
            break
        dice = chance.random()
        if dice < 0.10:
            world.crash()
            away.clear()
        elif losses and dice < 0.14:
            world.lose_update()
            away.clear()
        elif losses and dice < 0.16:
            world.lose_checkpoint()
            away.clear()
        elif dice < 0.24:
            site = chance.choice(SITES)
            (world.mend if site in away else world.cut)(site)
            away ^= {site}
        elif world.todo or world.mail:
            world.advance()
        else:
            for site in sorted(away):
                world.mend(site)
            away.clear()
            world.advance()
    for site in sorted(away):
        world.mend(site)
    return world


@pytest.mark.parametrize("name", PLANS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_disturbed_run_reaches_the_same_model(name: str, seed: int) -> None:
    plan = plan_named(name)
    expected = undisturbed(name)
    if plan.rules.select == "all":
        found = disturbed(plan, seed, losses=True)
    else:  # a selection prefers who is connected: the sites stay, the coordinator dies
        found = World(plan, random.Random(seed))
        found.start()
        while not found.over:
            found.crash() if found.chance.random() < 0.2 else found.advance()
    end = found.run()
    assert expected.state.ended == end
    assert aggregates(found) == aggregates(expected)


@pytest.mark.parametrize("name", [*PLANS, *ASYNC])
def test_killed_at_every_entry_of_the_journal(name: str) -> None:
    """The walk: after each event the process dies before it performed anything of it."""
    plan = plan_named(name)
    expected = undisturbed(name)
    assert expected.state.ended is not None
    assert expected.state.ended.status == "completed"
    for length in range(1, len(expected.journal) + 1):
        world = World(plan, random.Random(1))
        world.journal, world.answered = list(expected.journal), dict(expected.answered)
        world.disk = set(expected.disk) | {ref.digest for ref in _ever_made(expected)}
        world.at = 10_000.0
        world.crash(at_event=length)
        end = world.run()
        assert end.status == "completed"
        if name not in ASYNC:
            assert end == expected.state.ended, f"killed after event {length}"
        check_async_counts(world)


def _ever_made(world: World) -> list[Any]:
    made = [e for e in world.journal if isinstance(e, ModelAggregated)]
    from tests.run_plans import blob

    return [blob(0), *(e.model for e in made), *(e.state for e in made)]


@pytest.mark.parametrize("name", ASYNC)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), losses=st.booleans())
def test_async_counts_every_update_once_and_knows_its_age(
    name: str, seed: int, losses: bool
) -> None:
    world = disturbed(plan_named(name), seed, losses=losses)
    world.run()
    check_async_counts(world)


def check_async_counts(world: World) -> None:
    """Each update enters one model, as old as the models made since its order went out."""
    if not world.plan.is_async:
        return
    state = RunState.new()
    counted: dict[int, tuple[Taken, ...]] = {}
    for event in world.journal:
        before = state
        state, commands = step(state, event)
        for command in commands:
            if isinstance(command, Aggregate):
                assert len(command.updates) == world.plan.rules.buffer
                versions = {
                    (w.answer.site, w.answer.round): w.version for w in state.async_.waiting
                }
                for taken in command.updates:
                    version = versions[taken.site, taken.order_round]
                    assert taken.staleness == state.round - 1 - version >= 0
        if isinstance(event, ModelAggregated) and before.phase == "merging":
            counted = {n: t for n, t in counted.items() if n < event.round}
            keys = {(t.site, t.order_round) for taking in counted.values() for t in taking}
            assert not keys & {(t.site, t.order_round) for t in before.taking}
            counted[event.round] = before.taking
    assert all(count <= world.plan.terms.rounds for count in state.async_.given.values())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from([*PLANS, *ASYNC]))
def test_a_failed_run_goes_on_when_it_is_reopened(seed: int, name: str) -> None:
    chance = random.Random(seed)
    plan = plan_named(name)
    world = World(plan, chance)
    world.start()
    for _ in range(chance.randrange(40)):
        if not world.over:
            world.advance()
    if world.state.phase == "done":
        return
    finished = world.state.finished[-1].round
    world.feed(RunFailed(at=world.at, reason="disk full"))
    world.run()
    world.reopen()
    assert world.state.round == finished + 1
    end = world.run()
    assert end.status == "completed"
    if name not in ASYNC:
        assert end == undisturbed(name).state.ended


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    name=st.sampled_from([*PLANS, *ASYNC]),
    checkpoints=st.integers(1, 4),
)
def test_only_what_nobody_needs_is_dropped(seed: int, name: str, checkpoints: int) -> None:
    """World.feed checks that nothing needed is gone; here, that little is left over."""
    changes = {**PLANS.get(name, ASYNC.get(name, {})), "checkpoints": checkpoints, "rounds": 6}
    world = disturbed(run_plan(**{"sites": SITES, "retries": 3, **changes}), seed, losses=True)
    end = world.run()
    if end.status == "completed":
        lost = {ref.digest for ref in world.state.stored} - needed(world.state)
        assert not lost
        assert world.disk == {ref.digest for ref in world.state.stored}
        assert len(world.state.stored) <= 3 * (checkpoints + 1)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), name=st.sampled_from([*PLANS, *ASYNC]))
def test_the_story_can_be_told_of_any_journal(seed: int, name: str) -> None:
    world = disturbed(plan_named(name), seed, losses=True)
    end = world.run()
    history, broken_in = History.new(), 0
    for event in world.journal:
        broken_in += isinstance(event, BREAKS) and history.status is None
        history = append(history, event)
    assert len(history.interruptions) == broken_in
    assert (history.status, history.reason) == (end.status, end.reason)
    numbers = [found.number for found in history.rounds]
    assert numbers == list(range(1, len(numbers) + 1))
    told = explain(world.journal, None, None)
    rounds = (*history.rounds, history.current) if history.current else history.rounds
    assert {(e.round, e.site) for e in told} == {(f.number, s) for f in rounds for s in SITES}
    took = {(f.number, s) for f in rounds for s, p in f.parts.items() if p.status == "took_part"}
    assert {(e.round, e.site) for e in told if e.contributed} == took
    entered = [{taken.site for taken in taking} for taking in aggregates(world)]
    assert [{s for n, s in took if n == number} for number in numbers] == entered[: len(numbers)]
    assert all(0 <= number < len(world.journal) for e in told for number in e.evidence)
    summary(history, end, traffic={}, model_file=None)
