"""What admitted runs may hold of a lineage, how long, and what a release without privacy does to it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from fedfactory.contracts.privacy import no_bound
from fedfactory.identity.signing import fingerprint
from fedfactory.privacy.accounting import epsilon_of, joined
from fedfactory.privacy.entries import RunKey
from site_agents import ledger as ledger_module
from site_agents.cli.main import main
from site_agents.executors.executor import WorkerLostError
from site_agents.jobs.job import Job
from site_agents.policy import DataRule, Holds
from site_agents.unbounded import day_of
from tests.sites.asking import about_plan, questions_of
from tests.sites.rig import HUB, LINEAGE, OPEN, PRIVACY, Coordinator, Site, changed

DAY = 24 * 3600.0
ECHO = {"megabytes": 1}


class Clock:
    """A clock that a test puts ahead: for the ledger, the policy and admission alike."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.time = time.time

    def __call__(self) -> float:
        return self.time() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def plan(signer: Coordinator, run: str, **changes: Any):
    days = changes.pop("days", 20)
    return signer.terms(run_id=run, nonce=run, not_after=time.time() + days * DAY, **changes)


def held(site: Site, hub: str | None = None) -> float:
    ledger = site.books._ledger
    found = ledger.budget.held(LINEAGE, time.time(), coordinator=hub)
    return epsilon_of(ledger.accountant, found, 1e-5)


# ---- how long ----------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [31.5, 366.0, 20 * 365.0, 36_500.0])
@pytest.mark.rule("11")
def test_a_plan_of_years_is_refused_before_anything_is_held(site, coordinator, days) -> None:
    terms = plan(coordinator, "long", days=days)
    answer = questions_of(site).answer(about_plan(site, terms))
    assert answer is not None
    assert answer.preflight is not None
    assert answer.preflight.code == "plan_too_long"
    assert site.code(terms) == "plan_too_long"
    assert held(site) == 0.0
    assert site.code(plan(coordinator, "short", days=30.9)) is None


def test_the_policy_says_how_long(make_site, coordinator) -> None:
    site = make_site(holds=Holds(plan_days=2.5))
    assert site.code(plan(coordinator, "long", days=3)) == "plan_too_long"
    assert site.code(plan(coordinator, "short", days=2)) is None


@pytest.mark.rule("11")
def test_a_silent_runs_hold_lapses_for_others_and_for_good(site, coordinator, clock) -> None:
    silent = plan(coordinator, "silent")
    assert site.code(silent) is None
    spent, before = site.steps_spent(), held(site)
    assert before > 0
    clock.ahead = 7.5 * DAY
    assert site.code(plan(coordinator, "next", rounds=1, evaluate=False)) is None
    run = site.books._ledger.budget.runs[RunKey(coordinator=HUB, run_id="silent")]
    assert (run.lapsed, run.held(time.time())) == (True, {})
    assert sum(run.spent.values()) == spent, "what was spent stays spent"
    site.restart()
    assert site.books._ledger.budget.runs[RunKey(coordinator=HUB, run_id="silent")].lapsed


def test_a_lapsed_run_is_admitted_anew_for_what_was_left(site, coordinator, clock) -> None:
    terms = plan(coordinator, "silent")
    assert site.code(terms) is None
    before = held(site)
    clock.ahead = 8 * DAY
    assert site.code(terms, round=2) is None
    kinds = [row.kind for row in site.books.rows(20)]
    assert kinds[-4:] == ["RunLapsed", "RunAdmitted", "WorkReserved", "WorkCommitted"]
    run = site.books._ledger.budget.runs[RunKey(coordinator=HUB, run_id="silent")]
    assert not run.lapsed
    assert 0 < held(site) < before
    noises = {cost.noise_multiplier for cost in run.spent}
    assert len(noises) == 1, "at its own noise"


def test_a_lapsed_run_that_no_longer_fits_is_refused_with_the_reason(
    make_site, coordinator, clock, caplog
) -> None:
    site = make_site(epsilon_per_lineage=3.5)
    terms = plan(coordinator, "silent")
    assert site.code(terms) is None
    clock.ahead = 8 * DAY
    other = plan(coordinator, "other", privacy=changed(PRIVACY, target_epsilon=2.9))
    assert site.code(other) is None
    spent = site.steps_spent()
    assert site.code(terms, round=2) == "budget_exhausted"
    assert "has lapsed" in caplog.text
    assert site.steps_spent() == spent


def test_orders_keep_a_hold_alive(site, coordinator, clock) -> None:
    terms = plan(coordinator, "slow")
    for number in (1, 2, 3):
        assert site.code(terms, round=number) is None
        clock.ahead += 6 * DAY
        site.restart()
        about = plan(coordinator, f"asked-{number}", rounds=1)
        assert questions_of(site).answer(about_plan(site, about)) is not None
    assert "RunLapsed" not in [row.kind for row in site.books.rows(50)]


@pytest.mark.parametrize("point", ["before", "after"])
def test_an_agent_killed_at_the_lapse_goes_on_to_the_same_end(
    site, coordinator, clock, monkeypatch, point
) -> None:
    """Killed before or after the entry is durable: the next order finds it, once."""
    terms = plan(coordinator, "silent")
    assert site.code(terms) is None
    clock.ahead = 8 * DAY
    plain = ledger_module.Ledger.lapse

    def killed(self, entry):
        if point == "after":
            plain(self, entry)
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger_module.Ledger, "lapse", killed)
    with pytest.raises(KeyboardInterrupt):
        site.code(plan(coordinator, "next", rounds=1))
    monkeypatch.setattr(ledger_module.Ledger, "lapse", plain)
    site.restart()
    assert site.code(plan(coordinator, "next", rounds=1)) is None
    kinds = [row.kind for row in site.books.rows(50)]
    assert kinds.count("RunLapsed") == 1


# ---- how much ----------------------------------------------------------------------------------


@pytest.mark.rule("11")
def test_nine_plans_of_one_coordinator_leave_a_budget_to_another(make_site, coordinator) -> None:
    site = make_site()
    key = fingerprint(coordinator.key.public_key)
    site.write_policy(coordinators={HUB: key, "other": key})
    codes = [site.code(plan(coordinator, f"run-{n}")) for n in range(9)]
    assert codes[0] is None
    assert codes[-1] == "budget_exhausted"
    assert held(site, HUB) <= 5.0
    assert site.code(plan(coordinator, "theirs", coordinator="other")) is None


def test_a_whole_run_is_possible_whatever_the_share(make_site, coordinator) -> None:
    site = make_site(epsilon_per_lineage=3.0, holds=Holds(hold_share=0.1))
    assert site.code(plan(coordinator, "one")) is None
    assert site.code(plan(coordinator, "two")) == "budget_exhausted"


# ---- deltas ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "code"), [(99_999, None), (100_000, "policy_privacy")])
@pytest.mark.rule("12")
def test_a_delta_of_one_unit_is_refused(make_site, coordinator, size, code) -> None:
    data = {"cohort": DataRule(lineage=LINEAGE, public_size=size, unit="row")}
    site = make_site(data=data)
    assert site.code(plan(coordinator, "one")) == code


def test_a_lineage_that_outgrew_its_delta_is_refused(make_site, coordinator) -> None:
    site = make_site(delta=1e-3)
    data = {"cohort": DataRule(lineage=LINEAGE, public_size=5000, unit="row")}
    site.write_policy(delta=1e-5, data=data)
    assert site.code(plan(coordinator, "one")) == "budget_exhausted"


# ---- epsilon of a run --------------------------------------------------------------------------


@pytest.mark.rule("10")
def test_attempts_whose_worker_died_count_and_are_told_with_the_refusal(site, coordinator) -> None:
    def lost(job: Job) -> None:
        raise WorkerLostError("gone")

    ledger = site.books._ledger
    site.executor.fault = lost
    terms = plan(coordinator, "one")
    reply = site.ask(terms)
    assert reply.refusal is not None
    assert reply.standing is not None
    spent = epsilon_of(ledger.accountant, ledger.budget.spendings[LINEAGE], 1e-5)
    assert reply.standing.epsilon_run == spent > 0
    site.executor.fault = lambda job: None
    again = site.ask(terms, round=2)
    assert again.standing is not None
    assert again.update is not None
    assert again.update.privacy is not None
    assert again.standing.epsilon_run == again.update.privacy.epsilon_run > spent


def test_a_stranger_hears_no_epsilon(site, coordinator) -> None:
    assert site.ask(plan(coordinator, "one")).standing is not None
    site.write_policy(coordinators={})
    assert site.ask(plan(coordinator, "one"), round=2).standing is None


# ---- releases without privacy ------------------------------------------------------------------


@pytest.fixture
def open_site(make_site: Callable[..., Site]) -> Site:
    return make_site(without_dp=OPEN)


def unprotected(site: Site, coordinator: Coordinator, rounds: int = 2) -> None:
    terms = plan(coordinator, "open", privacy=None)
    for number in range(1, rounds + 1):
        assert site.code(terms, round=number) is None
    assert site.code(terms, round=1, kind="evaluate") is None


@pytest.mark.rule("13")
def test_a_release_without_privacy_voids_the_bound_everywhere(
    open_site, coordinator, capsys
) -> None:
    site = open_site
    unprotected(site, coordinator)
    said = no_bound(3, day_of(time.time()))
    assert said.startswith("no bound: 3 updates left without privacy, last on 20")
    home = ["--home", str(site.home)]
    main(["ledger", *home])
    shown = capsys.readouterr().out
    assert said in shown
    assert "left 10" not in shown
    main(["ledger", *home, "--json"])
    lineage = json.loads(capsys.readouterr().out)["lineages"][0]
    assert (lineage["left"], lineage["unprotected_updates"]) == (None, 3)
    main(["status", *home])
    assert f"lineage '{LINEAGE}': {said}" in capsys.readouterr().out
    reply = site.ask(plan(coordinator, "private"))
    assert reply.standing is not None
    assert reply.standing.unprotected_updates == 3
    assert reply.standing.unprotected_on == day_of(time.time())


@pytest.mark.rule("13")
def test_an_update_is_in_the_ledger_before_it_leaves(open_site, coordinator, monkeypatch) -> None:
    """The agent is killed as the update leaves: a new one knows of it, and counts it once."""
    site = open_site

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(site.pipeline._release, "_send", killed)
    terms = plan(coordinator, "open", privacy=None)
    with pytest.raises(KeyboardInterrupt):
        site.code(terms)
    site.restart()
    assert site.books._ledger.budget.unprotected[LINEAGE].updates == 1
    assert site.code(terms) is None
    assert site.books._ledger.budget.unprotected[LINEAGE].updates == 1


def test_a_lineage_that_was_never_opened_is_counted_and_stays_so(
    open_site, coordinator, capsys
) -> None:
    site = open_site
    data = {"cohort": DataRule(lineage="north", public_size=500, unit="row")}
    site.write_policy(data=data, without_dp=OPEN)
    unprotected(site, coordinator, rounds=1)
    assert site.books._ledger.budget.unprotected["north"].updates == 2
    site.books._ledger.open_lineage("north", 1e-5, actor="ada", reason="later")
    site.restart()
    main(["ledger", "--home", str(site.home)])
    assert "lineage north at delta 1e-05: no bound: 2 updates" in capsys.readouterr().out


def test_work_that_reads_no_data_voids_nothing(make_site, coordinator) -> None:
    site = make_site(without_dp=OPEN, tasks={"echo": "cohort"})
    terms = plan(coordinator, "echo", privacy=None, task="echo", task_parameters=ECHO)
    assert site.code(terms) is None
    assert site.books._ledger.budget.unprotected == {}


def test_failed_work_without_privacy_voids_nothing(open_site, coordinator) -> None:
    open_site.executor.failure = "work_failed"
    assert open_site.code(plan(coordinator, "open", privacy=None)) == "work_failed"
    assert open_site.books._ledger.budget.unprotected == {}


@pytest.mark.parametrize(("rule", "code"), [("allow", None), ("refuse", "budget_exhausted")])
def test_the_policy_decides_on_runs_on_a_lineage_without_a_bound(
    make_site, coordinator, rule, code
) -> None:
    site = make_site(without_dp=OPEN, holds=Holds(unbounded_lineage=rule))
    assert site.code(plan(coordinator, "before")) is None
    unprotected(site, coordinator, rounds=1)
    assert site.code(plan(coordinator, "after", rounds=1)) == code


def test_holds_and_spendings_keep_the_cap_beside_releases(open_site, coordinator) -> None:
    site = open_site
    unprotected(site, coordinator, rounds=1)
    for number in range(3):
        site.code(plan(coordinator, f"run-{number}"))
    ledger = site.books._ledger
    whole = joined(ledger.budget.spendings[LINEAGE], ledger.budget.held(LINEAGE, time.time()))
    assert epsilon_of(ledger.accountant, whole, 1e-5) <= 10.0
