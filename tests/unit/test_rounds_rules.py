"""Who is asked, when a round counts and how long it waits: rule by rule."""

from __future__ import annotations

from typing import Any

import pytest

from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.rounds.asking import may_recover
from fedfactory.rounds.events import (
    Aggregate,
    DeadlinePassed,
    Finish,
    SendOrders,
    SetDeadline,
    SiteConnected,
    SiteLeft,
    SiteLost,
)
from fedfactory.rounds.machine import RunState
from fedfactory.rounds.selection import draw
from tests.run_events import Run, accepted, made, refused, sent, taken
from tests.run_plans import SITES, blob, run_plan

FIVE = ("a", "b", "c", "d", "e")
DP = PrivacyPlan(
    target_epsilon=3.0, noise_multiplier=None, delta=1e-5, clip_norm_l2=1.0,
    grad_sample_mode="hooks", evaluation_noise_multiplier=None, evaluation_loss_clip=5.0,
)  # fmt: skip


def late(number: int = 1) -> DeadlinePassed:
    return DeadlinePassed(at=40.0, round=number, kind="train")


def selecting(select: str, **changes: Any) -> Run:
    settings = {"per_round": 2, "quorum": 1, "rounds": 9, "evaluate": False, **changes}
    return Run(run_plan(sites=FIVE, select=select, **settings))


def chosen(run: Run) -> tuple[str, ...]:
    return run.state.sites("train", "asked")


def choices(run: Run, rounds: int) -> list[tuple[str, ...]]:
    found = []
    for number in range(1, rounds + 1):
        found.append(chosen(run))
        run.finish_round(number)
    return found


# ---- selection ------------------------------------------------------------------------------


def test_a_random_choice_depends_on_seed_and_round_alone() -> None:
    first = choices(selecting("random"), 6)
    assert first == choices(selecting("random"), 6)
    assert first != choices(selecting("random", seed=2), 6)
    assert len(set(first)) > 1
    ranked = sorted(FIVE, key=lambda site: draw(1, 1, site))
    assert first[0] == tuple(sorted(ranked[:2]))


def test_round_robin_gives_everyone_their_turn() -> None:
    assert choices(selecting("round_robin"), 5) == [
        ("a", "b"), ("c", "d"), ("a", "e"), ("b", "c"), ("d", "e"),
    ]  # fmt: skip


def test_by_size_who_is_unknown_comes_first_and_the_large_come_often() -> None:
    run = selecting("size", rounds=300, seed=3)
    count = dict.fromkeys(FIVE, 0)
    sizes = {"a": 1000, "b": 10, "c": 10, "d": 10, "e": 10}
    for number in range(1, 200):
        sites = chosen(run)
        if number <= 2:
            assert not set(sites) & set(run.state.examples)
        run.feed(sent(*sites, round=number))
        for site in sites:
            count[site] += 1
            run.feed(accepted(site, round=number, examples=sizes[site]))
        run.feed(made(number))
    assert count["a"] > 190
    assert min(count.values()) > 10


def test_by_availability_the_reliable_ones_are_asked() -> None:
    run = selecting("availability", per_round=4)
    run.feed(sent("a", "b", "c", "d"), *(accepted(site) for site in "bcd"), late(), made(1))
    assert chosen(run) == ("b", "c", "d", "e")  # a has not answered


@pytest.mark.parametrize("select", ["random", "size", "availability", "round_robin"])
def test_required_ones_are_always_asked_and_absent_ones_last(select: str) -> None:
    run = selecting(select, required=("c",), per_round=3)
    run.feed(SiteLost(at=1.0, site="a"), SiteLost(at=1.0, site="c"))
    run.finish_round(1)
    for number in range(2, 6):
        assert "c" in chosen(run)
        assert "a" not in chosen(run)
        run.finish_round(number)


def test_a_site_that_left_is_never_asked() -> None:
    run = selecting("random", per_round=4)
    run.feed(SiteLeft(at=1.0, site="b", code="revoked"))
    run.finish_round(1)
    assert chosen(run) == ("a", "c", "d", "e")
    assert run.state.sync.train["b"].code == "revoked"


# ---- over-selection -------------------------------------------------------------------------


def test_with_extra_sites_the_round_closes_when_enough_are_in() -> None:
    run = selecting("random", extra=1)
    sites = chosen(run)
    assert len(sites) == 3
    run.feed(sent(*sites), accepted(sites[2]))
    assert run.feed(accepted(sites[0])) == (Aggregate(round=1, updates=taken(sites[0], sites[2])),)
    spare = run.state.sync.train[sites[1]]
    assert (spare.status, spare.code) == ("not_needed", "not_needed")


def test_a_required_site_is_waited_for_however_many_are_in() -> None:
    run = selecting("random", extra=2, required=("c",))
    others = [site for site in chosen(run) if site != "c"]
    run.feed(sent(*chosen(run)), *(accepted(site) for site in others))
    assert run.state.phase == "training"
    run.feed(accepted("c"))
    assert run.state.phase == "aggregating"


# ---- quorum, deadline, lateness -------------------------------------------------------------


def test_the_deadline_closes_a_round_that_has_its_quorum() -> None:
    run = Run()
    run.feed(sent(*SITES), accepted("cesga"), accepted("lumi"))
    assert run.feed(late()) == (Aggregate(round=1, updates=taken("cesga", "lumi")),)
    assert run.state.sync.train["cyfronet"].code == "no_answer"


def test_without_a_quorum_it_waits_longer_and_closes_as_soon_as_it_holds() -> None:
    run = Run(run_plan(lateness_s=7.0))
    run.feed(sent(*SITES), accepted("cesga"))
    assert run.feed(late()) == (SetDeadline(round=1, kind="train", after_s=7.0),)
    assert run.feed(accepted("lumi")) == (Aggregate(round=1, updates=taken("cesga", "lumi")),)


def test_after_its_lateness_the_run_fails_and_names_the_silent() -> None:
    run = Run(run_plan(lateness_s=7.0))
    run.feed(sent(*SITES), accepted("cesga"), late(), late())
    assert run.only(Finish).status == "failed"
    assert "cyfronet: no_answer, lumi: no_answer" in run.only(Finish).reason


def test_a_quorum_without_its_required_site_is_none() -> None:
    run = Run(run_plan(required=("lumi",)))
    run.feed(sent(*SITES), accepted("cesga"), accepted("cyfronet"))
    assert run.state.phase == "training"
    run.feed(refused("lumi", "policy_task"))
    end = run.only(Finish)
    assert end.status == "failed"
    assert "the required site 'lumi' gave none" in end.reason


def test_a_required_site_that_was_revoked_ends_the_run_by_name() -> None:
    run = Run(run_plan(required=("lumi",), evaluate=False))
    run.finish_round(1)
    run.feed(SiteLeft(at=3.0, site="lumi", code="revoked"))
    end = run.only(Finish)
    assert (end.status, end.model) == ("failed", blob(1))
    assert "'lumi' gave none" in end.reason
    assert "lumi: revoked" in end.reason


def test_a_site_that_was_not_here_is_not_waited_for_if_the_others_suffice() -> None:
    run = Run(run_plan(evaluate=False))
    run.feed(SiteLost(at=0.5, site="lumi"))
    run.train(1, "cesga", "cyfronet")
    assert run.state.phase == "training"  # it was here when the round began
    run.feed(late(), made(1))
    run.train(2, "cesga", "cyfronet")
    assert run.only(Aggregate).updates == taken("cesga", "cyfronet", round=2)
    assert run.state.sync.train["lumi"].code == "offline"


def test_a_site_that_joins_an_open_phase_is_asked_and_then_waited_for() -> None:
    run = Run(run_plan(evaluate=False))
    run.feed(SiteLost(at=0.5, site="lumi"), sent(*SITES), late())
    run = Run(run_plan(evaluate=False))
    run.feed(SiteLost(at=0.5, site="lumi"))
    run.train(1, "cesga", "cyfronet")
    run.feed(late(), made(1), sent(*SITES, round=2), accepted("cesga", round=2))
    run.feed(SiteConnected(at=50.0, site="lumi"))
    assert run.only(SendOrders).sites == ("lumi",)
    run.feed(accepted("cyfronet", round=2))
    assert run.state.phase == "training"
    run.feed(accepted("lumi", round=2))
    assert run.only(Aggregate).updates == taken(*SITES, round=2)


# ---- retries --------------------------------------------------------------------------------


def test_a_failure_that_passes_is_followed_by_another_try() -> None:
    run = Run(run_plan(retries=1))
    run.feed(sent(*SITES), refused("lumi", "transfer_failed"))
    assert run.only(SendOrders) == SendOrders(
        round=1, kind="train", sites=("lumi",), model=blob(0), again=True
    )
    assert run.feed(refused("lumi", "transfer_failed")) == ()
    assert run.state.sync.train["lumi"].status == "refused"


@pytest.mark.parametrize(
    ("code", "privacy", "again"),
    [
        ("transfer_failed", None, True),
        ("transfer_failed", DP, True),
        ("missing_update", DP, True),
        ("expired", DP, True),
        ("worker_lost", None, True),
        ("worker_lost", DP, False),
        ("timed_out", DP, False),
        ("work_failed", None, False),
        ("budget_exhausted", DP, False),
        ("bad_update_values", None, False),
    ],
)
def test_which_failures_pass(code: str, privacy: PrivacyPlan | None, again: bool) -> None:
    run = Run(run_plan(retries=1, privacy=privacy))
    run.feed(sent(*SITES), refused("lumi", code))
    assert bool(run.last) == again


def test_a_site_that_is_away_is_tried_when_it_is_back() -> None:
    run = Run(run_plan(retries=1))
    run.feed(sent(*SITES), SiteLost(at=1.0, site="lumi"))
    assert run.feed(refused("lumi", "transfer_failed")) == ()
    run.feed(SiteConnected(at=2.0, site="lumi"))
    assert run.only(SendOrders).sites == ("lumi",)


def test_a_round_without_its_quorum_begins_anew_and_keeps_what_is_in() -> None:
    run = Run(run_plan(retries=1, quorum=3))
    run.feed(sent(*SITES), accepted("cesga"))
    run.feed(refused("lumi", "transfer_failed"), refused("lumi", "transfer_failed"))
    assert may_recover(run.state, "lumi")
    assert run.feed(late()) == (
        SendOrders(round=1, kind="train", sites=("cyfronet", "lumi"), model=blob(0), again=True),
        SetDeadline(round=1, kind="train", after_s=30.0),
    )
    assert run.feed(accepted("lumi"), accepted("cyfronet")) == (
        Aggregate(round=1, updates=taken(*SITES)),
    )


def test_a_round_does_not_begin_anew_for_ever() -> None:
    run = Run(run_plan(retries=2))
    run.feed(sent(*SITES), late(), late())
    assert run.state.phase == "training"
    run.feed(late())
    assert run.only(Finish).status == "failed"


def test_a_quorum_that_no_retry_brings_fails_at_once() -> None:
    run = Run(run_plan(retries=5, quorum=3))
    run.feed(sent(*SITES), refused("lumi", "policy_task"))
    assert run.only(Finish).status == "failed"


def test_a_strategy_that_leaves_a_required_site_out_fails_the_run() -> None:
    run = Run(run_plan(required=("lumi",), quorum=1))
    run.feed(sent("cesga"))
    assert "'lumi' gave none" in run.only(Finish).reason


def test_a_strategy_that_chooses_too_few_says_what_to_lower() -> None:
    run = Run(run_plan(quorum=3))
    run.feed(sent("cesga", "lumi"))
    assert "lower rounds.quorum" in run.only(Finish).reason
    assert "cyfronet: not_selected" in run.only(Finish).reason


def test_the_first_state_knows_nobody() -> None:
    assert RunState.new().never_took_part == ()
