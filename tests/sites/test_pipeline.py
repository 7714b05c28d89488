"""What an honest order meets at a site, step by step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedfactory.contracts.model import BlobRef
from fedfactory.wire.arrays import file_ref, write_arrays
from site_agents import control
from site_agents.approvals import Approvals
from site_agents.executors.executor import (
    JobTimeoutError,
    NeverBegunError,
    NoDataError,
    WorkerLostError,
    WorkStoppedError,
)
from site_agents.pipeline import Pending
from tests.sites.rig import LINEAGE, MODEL, OPEN, TRAINING, Site, changed

STEPS = 2 * 8  # 500 units, 400 of them to train on, batches of 50, two epochs


def test_private_work_is_reserved_done_and_answered(site: Site) -> None:
    reply = site.ask()
    assert reply.update is not None
    assert site.steps_spent() == STEPS
    (job,) = site.executor.jobs
    assert job.mechanism is not None
    assert (job.source, job.mechanism.steps, job.mechanism.sample_rate) == ("cohort", STEPS, 0.125)
    spent = reply.update.privacy
    assert spent is not None
    assert 0 < spent.epsilon_run < 3.0
    assert [p.name for p in site.received.iterdir()] == [
        reply.update.payload.blob.digest.removeprefix("sha256:")
    ]


def test_the_true_count_stays_and_data_are_not_even_counted_before_they_are_paid_for(
    site: Site,
) -> None:
    reply = site.ask()
    assert reply.update.examples == 500  # the public size; the worker said 400
    assert reply.update.metrics == {}
    assert site.executor.described == 0


def test_a_whole_run_keeps_its_epsilon(site: Site) -> None:
    for number in range(1, 6):
        trained = site.ask(round=number).update
        measured = site.ask(round=number, kind="evaluate").update
        assert trained is not None
        assert measured is not None
    assert 2.5 < measured.privacy.epsilon_run <= 3.0


def test_finished_work_is_answered_again_for_nothing_also_after_a_restart(site: Site) -> None:
    first = site.ask()
    site.restart()
    again = site.ask()
    assert again.update == first.update
    assert (site.executions(), site.steps_spent()) == (1, STEPS)


def test_finished_work_whose_file_is_another_now_stays(site: Site) -> None:
    site.ask()
    (file,) = (site.home / "spool" / "jobs").glob("*/update.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    left = {p.name for p in site.received.iterdir()}
    assert site.code() == "egress_refused"
    assert {p.name for p in site.received.iterdir()} == left


def test_another_order_for_begun_work_is_a_conflict(site: Site) -> None:
    site.ask()
    assert site.code(seed=2) == "conflict"
    assert site.executions() == 1


def test_without_privacy_the_site_asks_for_enough_records(
    make_site: Callable[..., Site], coordinator
) -> None:
    site = make_site(without_dp=OPEN)
    terms = coordinator.terms(privacy=None)
    reply = site.ask(terms)
    assert reply.update.privacy is None
    assert reply.update.examples == 400
    site.executor.facts = dataclasses.replace(site.executor.facts, train=9)
    assert site.code(terms, round=2) == "too_few_examples"
    assert site.steps_spent() == 0


def _raise(error: Exception) -> Callable[[object], None]:
    def fault(job: object) -> None:
        raise error

    return fault


@pytest.mark.parametrize(
    ("fault", "code", "executions", "spent"),
    [
        (WorkerLostError("gone"), "work_failed", 2, 2 * STEPS),
        (JobTimeoutError("slow"), "work_failed", 1, STEPS),
        (OSError("disk"), "work_failed", 1, STEPS),
        (WorkStoppedError("stop"), "killed", 1, STEPS),
        (NeverBegunError("no room"), "paused", 1, 0),
    ],
)
def test_failures_of_private_work_look_alike_and_stay_charged(
    site: Site, fault: Exception, code: str, executions: int, spent: int
) -> None:
    site.executor.fault = _raise(fault)
    assert site.code() == code
    assert (site.executions(), site.steps_spent()) == (executions, spent)


def test_a_worker_that_says_it_failed_and_one_whose_result_is_held_back_look_alike(
    site: Site,
) -> None:
    site.executor.failure = "bad_model"
    assert site.code() == "work_failed"
    site.executor.failure = None
    site.executor.tensors = {"w": site.executor.tensors["w"]}
    assert site.code(round=2) == "work_failed"
    assert list(site.received.iterdir()) == []


def test_an_update_beyond_the_planned_norm_is_held_back(make_site, coordinator) -> None:
    site = make_site(without_dp=OPEN)
    site.executor.tensors = {n: a + np.float32(9) for n, a in site.executor.tensors.items()}
    assert site.code(coordinator.terms(privacy=None)) == "egress_refused"
    assert site.code(coordinator.terms(privacy=None, run_id="r", max_update_norm_l2=100.0)) is None


@pytest.mark.parametrize(("by", "code"), [(9, "egress_refused"), (1, None)])
def test_without_a_signed_norm_an_update_is_held_against_the_rule(
    make_site, coordinator, by, code
) -> None:
    """|base| is below 1 here, so the bound is 10; by 9 everywhere the norm is 36."""
    site = make_site(without_dp=OPEN)
    site.executor.tensors = {n: a + np.float32(by) for n, a in site.executor.tensors.items()}
    assert site.code(coordinator.terms(privacy=None, max_update_norm_l2=None)) == code


def test_failing_work_pauses_its_run(site: Site) -> None:
    site.executor.fault = _raise(OSError("disk"))
    for number in (1, 2, 3):
        assert site.code(round=number) == "work_failed"
    assert site.code(round=4) == "paused"
    assert site.executions() == 3


def test_without_privacy_failures_keep_their_codes(make_site, coordinator) -> None:
    site = make_site(without_dp=OPEN)
    terms = coordinator.terms(privacy=None)
    site.executor.fault = _raise(JobTimeoutError("slow"))
    assert site.code(terms) == "timed_out"
    site.executor.fault = _raise(NoDataError("none"))
    site.executor.describe = _raise_any(NoDataError("none"))
    assert site.code(terms, round=2) == "no_data"


def _raise_any(error: Exception) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("name", "code"), [("paused", "paused"), ("draining", "paused"), ("killed", "killed")]
)
def test_what_the_administrator_says_holds_at_the_next_order(site: Site, name, code) -> None:
    control.set(site.home, name, by="admin", reason="maintenance")
    assert site.code() == code
    assert site.executions() == 0
    control.clear(site.home, by="admin", reason="done")
    assert site.code() is None


def test_nothing_leaves_once_killed_not_even_what_is_finished(site: Site) -> None:
    site.ask()
    control.set(site.home, "killed", by="admin", reason="incident")
    assert site.code() == "killed"
    control.set(site.home, "paused", by="admin", reason="maintenance")
    assert site.code() is None  # finished work leaves while paused


def test_a_policy_that_changes_holds_at_the_next_order(site: Site) -> None:
    assert site.code() is None
    site.write_policy(tasks={"breast_cancer": "cohort"})
    assert site.code(round=2) == "policy_task"
    (site.home / "policy.yaml").write_text("egress: automatic\nextra: 1\n")
    assert site.code(round=3) == "no_policy"
    site.write_policy()
    assert site.code(round=4) is None


def test_a_person_decides_where_the_policy_says_so(make_site) -> None:
    site = make_site(egress="every_round")
    assert isinstance(site.answer(site.delivery()), Pending)
    assert list(site.received.iterdir()) == []
    approvals = Approvals(site.home)
    (one,) = approvals.waiting()
    assert [t.name for t in one.leaving.tensors] == ["b", "w"]
    approvals.decide(one, approved=True, by="mia", reason="looked at it")
    reply = site.ask()
    assert reply.update is not None
    assert len(list(site.received.iterdir())) == 1
    assert (site.executions(), approvals.waiting()) == (1, ())


def test_a_person_may_say_no(make_site) -> None:
    site = make_site(egress="first_round")
    site.answer(site.delivery())
    approvals = Approvals(site.home)
    approvals.decide(approvals.waiting()[0], approved=False, by="mia", reason="too exact")
    assert site.code() == "policy_egress"
    assert site.code() == "policy_egress"
    assert list(site.received.iterdir()) == []


def test_what_leaves_is_written_down_before_it_leaves(site: Site) -> None:
    site.pipeline._release._send = _raise_any(OSError("line cut"))
    before = site.books.anchor().audit_length
    assert site.code() == "transfer_failed"
    assert site.books.anchor().audit_length == before + 2  # the release, then the refusal


def test_a_run_is_held_whole_so_that_another_cannot_take_it(site: Site, coordinator) -> None:
    site.ask()
    greedy = coordinator.terms(run_id="run-2", rounds=10, nonce="n-2")
    others = [site.code(changed(greedy, run_id=f"run-{n}")) for n in range(2, 20)]
    budget = site.books._ledger.budget
    held = {n for n, code in enumerate(others) if code is None}
    assert "budget_exhausted" in others
    assert held == set(range(len(held)))
    # The first run's own rounds still fit.
    assert [site.code(round=n) for n in (2, 3, 4, 5)] == [None] * 4
    assert budget.spendings[LINEAGE]


@pytest.mark.rule("39")
def test_a_strategy_may_lower_the_learning_rate_and_never_raise_it(site: Site) -> None:
    cooler = replace(TRAINING, lr=0.01, proximal_mu=0.1)
    assert site.code(training=cooler) is None
    for hotter in (replace(TRAINING, lr=0.2), replace(TRAINING, momentum=0.5)):
        assert site.code(training=hotter, round=2) == "outside_plan"
    assert site.executions() == 1


@pytest.mark.rule("39")
def test_round_1_starts_from_the_signed_model_alone_and_nothing_is_charged(site: Site) -> None:
    other = BlobRef(digest="sha256:" + "e" * 64, bytes=site.base.bytes)
    assert site.code(base=other) == "outside_plan"
    assert (site.steps_spent(), site.executions()) == (0, 0)
    assert site.code() is None


@pytest.mark.parametrize(
    ("value", "policy"), [(np.inf, {}), (-np.inf, {}), (np.nan, {}), (-2.0, {"b": 1.0})]
)
@pytest.mark.rule("39")
def test_a_base_of_values_that_the_policy_does_not_allow_costs_nothing(
    site: Site, value: float, policy: dict[str, float]
) -> None:
    site.write_policy(max_base_abs=policy)
    held = dict(MODEL, b=np.array([0.0, value, 0.0], np.float32))
    base = write_arrays(site.folder / "base.safetensors", held)
    terms = site.coordinator.terms(initial=base)
    before = site.books.anchor().ledger_sequence
    assert site.code(terms, base=base) == "policy_base"
    assert site.books.anchor().ledger_sequence == before
    assert (site.steps_spent(), site.executions()) == (0, 0)
    assert not (site.home / "failures.json").exists()


def test_a_base_that_is_no_model_costs_nothing(site: Site) -> None:
    path = site.folder / "base.safetensors"
    path.write_bytes(b"\0" * 1000)
    base = file_ref(path)
    assert site.code(site.coordinator.terms(initial=base), base=base) == "policy_base"
    assert (site.steps_spent(), site.executions()) == (0, 0)


def test_a_strategy_that_the_policy_does_not_name_is_refused(site: Site) -> None:
    site.write_policy(strategies=("fedprox",))
    assert site.code() == "policy_strategy"
    assert site.code(site.coordinator.terms(strategy="fedprox")) is None


def test_refused_deliveries_are_kept_to_be_explained(site: Site) -> None:
    site.code(task="tabular")
    (kept,) = (site.home / "refused").iterdir()
    assert json.loads(kept.read_text())["envelope"]["order"]["task"] == "tabular"
