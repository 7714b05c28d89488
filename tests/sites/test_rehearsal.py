"""What cannot be done privately, whatever the records are, costs nothing and counts as no failure."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedfactory.tasks.rehearsal import Rehearsal
from site_agents.executors.executor import (
    NeverBegunError,
    UnfitWorkError,
    WorkerLostError,
)
from tests.sites.rig import OPEN, Coordinator, Site, changed


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, Coordinator())


@pytest.mark.parametrize(
    ("obstacle", "code"),
    [
        (UnfitWorkError("bad_model", "another form"), "bad_model"),
        (UnfitWorkError("not_repeatable", "kernels"), "not_repeatable"),
        (WorkerLostError("died"), "worker_lost"),
        (NeverBegunError("busy"), "paused"),
    ],
)
@pytest.mark.rule("19")
def test_a_trial_that_fails_is_refused_unpaid_and_uncounted(
    site: Site, obstacle: Exception, code: str
) -> None:
    site.executor.unfit = obstacle
    for run in range(8):  # a lineage pauses at six counted failures
        terms = site.coordinator.terms(run_id=f"run-{run}")
        assert site.code(terms) == code
    assert site.executions() == 0
    site.executor.unfit = None
    assert site.code(site.coordinator.terms(run_id="run-9")) is None


@pytest.mark.rule("27")
def test_nothing_is_reserved_for_it(site: Site) -> None:
    site.executor.unfit = UnfitWorkError("bad_model", "another form")
    assert site.code() == "bad_model"
    assert not any(site.books._ledger.budget.spendings.values())


def test_it_is_tried_by_public_numbers_before_each_piece_of_private_work(site: Site) -> None:
    site.ask()
    site.ask(kind="evaluate")
    train, evaluate = (trial.rehearsal for trial in site.executor.rehearsed)
    assert train.kind == "train"
    assert train.rows % 16 == 0
    assert evaluate.kind == "evaluate"
    assert isinstance(evaluate, Rehearsal)


def test_work_without_privacy_is_not_tried(site: Site) -> None:
    site.write_policy(without_dp=OPEN)
    site.ask(changed(site.coordinator.terms(), privacy=None))
    assert site.executor.rehearsed == []


@pytest.mark.rule("27")
def test_private_work_is_not_begun_when_its_order_has_ended(site: Site) -> None:
    before = time.time()
    site.ask()
    trial, job = site.executor.rehearsed[0], site.executor.jobs[0]
    assert job.begin_by is not None
    assert trial.begin_by == job.begin_by > before
    site.write_policy(without_dp=OPEN)
    terms = changed(site.coordinator.terms(run_id="open"), privacy=None)
    site.ask(terms)
    assert site.executor.jobs[1].begin_by is None
