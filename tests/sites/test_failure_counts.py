"""What a hostile coordinator can make fail: uncharged where no record decides, else its own pause."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from fedfactory.identity.signing import fingerprint
from site_agents import control
from site_agents.cli import status
from site_agents.config import load_agent_config
from site_agents.doctor.house import examine_home
from site_agents.executors.executor import WorkerLostError
from site_agents.failures import MOST_FAILURES, MOST_OF_LINEAGE, note_failure, read_failures
from site_agents.jobs.job import Job
from site_agents.ledger import LedgerError
from site_agents.policy.plan_clauses import LEAST_LEFT_S
from tests.sites.rig import HUB, LINEAGE, Site

STEPS = 2 * 8  # as the rig trains: two epochs of 400 units, in batches of 50
HUBS = ("hub", "hub-b", "hub-c")


@pytest.fixture
def shared(make_site: Callable[..., Site]) -> Site:
    """A site that pins three coordinators; all sign with the one key of the rig."""
    site = make_site()
    key = fingerprint(site.coordinator.key.public_key)
    site.write_policy(coordinators=dict.fromkeys(HUBS, key), egress="automatic")
    return site


def code(site: Site, hub: str, number: int) -> str | None:
    terms = site.coordinator.terms(
        coordinator=hub, run_id=f"{hub}-{number}", nonce=f"{number}", rounds=1
    )
    return site.code(terms)


# ---- time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_s", [-1.0, 0.0, 1.0, LEAST_LEFT_S - 0.1])
@pytest.mark.rule("27")
def test_private_work_without_time_left_is_refused_unpaid_and_uncounted(
    site: Site, left_s: float
) -> None:
    for number in range(1, 5):
        assert site.code(round=number, expires_at=time.time() + left_s) == "expired"
    assert (site.executions(), site.steps_spent()) == (0, 0)
    assert read_failures(site.home).counts == {}
    assert site.code() is None


def test_time_that_runs_out_while_the_model_is_fetched_costs_nothing(site: Site) -> None:
    working = site.pipeline._working
    plain = working._fetch

    def slow(ref):
        time.sleep(1.2)
        return plain(ref)

    working._fetch = slow
    assert site.code(expires_at=time.time() + LEAST_LEFT_S + 1) == "expired"
    assert (site.executions(), site.steps_spent()) == (0, 0)
    assert read_failures(site.home).counts == {}


def test_the_sites_own_time_limit_alone_bounds_private_work(site: Site) -> None:
    limits = []
    plain = site.executor.run

    def run(job: Job, folder, timeout_s: float):
        limits.append(timeout_s)
        return plain(job, folder, timeout_s)

    site.executor.run = run
    assert site.code(expires_at=time.time() + LEAST_LEFT_S + 1) is None
    assert limits == [60.0]


def test_finished_work_is_sent_again_in_the_last_second(site: Site) -> None:
    assert site.code() is None
    assert site.code(expires_at=time.time() + 0.8) is None


# ---- whose failures pause whom -----------------------------------------------------------------


@pytest.mark.rule("28")
def test_a_coordinator_pauses_itself_and_nobody_else(shared: Site) -> None:
    shared.executor.failure = "work_failed"
    for number in range(MOST_FAILURES):
        assert code(shared, HUB, number) == "work_failed"
        shared.restart()
    shared.executor.failure = None
    assert code(shared, HUB, 9) == "paused"
    assert code(shared, "hub-b", 9) is None


@pytest.mark.rule("28")
def test_failures_of_several_coordinators_pause_the_lineage_until_resume(shared: Site) -> None:
    shared.executor.failure = "work_failed"
    for hub in HUBS[:2]:
        for number in range(MOST_OF_LINEAGE // 2):
            assert code(shared, hub, number) == "work_failed"
    shared.executor.failure = None
    done = shared.executions()
    assert code(shared, "hub-c", 1) == "paused"
    assert shared.executions() == done
    control.clear(shared.home, by="ada", reason="looked")
    assert code(shared, "hub-c", 1) is None
    assert code(shared, HUB, 9) is None


def test_one_coordinator_with_many_orders_under_way_still_pauses_only_itself(shared: Site) -> None:
    """All are begun before the first has failed: each is counted, none pauses another's."""
    many = MOST_OF_LINEAGE + 2
    together = threading.Barrier(many)

    def fail(job: Job) -> None:
        together.wait(20)
        raise OSError("a record that somebody chose")

    shared.executor.fault = fail
    found: list[str | None] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(code(shared, HUB, n))) for n in range(many)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["work_failed"] * many
    assert read_failures(shared.home).counts == {LINEAGE: {HUB: many}}
    shared.executor.fault = lambda job: None
    assert code(shared, HUB, 99) == "paused"
    assert code(shared, "hub-b", 1) is None


def test_failures_counted_meanwhile_stop_the_second_attempt(shared: Site) -> None:
    def lost(job: Job) -> None:
        for _ in range(MOST_FAILURES):
            note_failure(shared.home, LINEAGE, HUB)
        raise WorkerLostError("gone")

    shared.executor.fault = lost
    assert code(shared, HUB, 1) == "work_failed"
    assert shared.executions() == 1


@pytest.mark.rule("28")
def test_that_a_second_attempt_is_not_paid_for_is_told_to_nobody(site: Site) -> None:
    """One round takes all of the run's epsilon: for what the worker's death cost twice none is left."""
    lost = WorkerLostError("gone")
    site.executor.fault = lambda job: _raise(lost)
    terms = site.coordinator.terms(rounds=1, evaluate=False)
    reply = site.ask(terms)
    assert reply.refusal is not None
    assert reply.refusal.code == "work_failed"
    assert site.executions() == 1
    assert read_failures(site.home).counts == {LINEAGE: {HUB: 1}}


@pytest.mark.rule("28")
def test_a_second_attempt_that_the_ledger_cannot_take_is_the_same_code_and_counted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = site.books.reserve

    def full(*asked: object) -> object:
        if site.executions():
            raise LedgerError("the disk is full")
        return reserve(*asked)

    site.executor.fault = lambda job: _raise(WorkerLostError("gone"))
    monkeypatch.setattr(site.books, "reserve", full)
    assert site.code() == "work_failed"
    assert site.executions() == 1
    assert site.steps_spent() == STEPS, "the first attempt stays paid for"
    assert read_failures(site.home).counts == {LINEAGE: {HUB: 1}}


def _raise(error: Exception) -> None:
    raise error


def test_status_and_doctor_show_the_failures(shared: Site, capsys) -> None:
    shared.executor.failure = "work_failed"
    code(shared, "hub-b", 1)
    status.main(["--home", str(shared.home)])
    line = "lineage 'patients', coordinator 'hub-b': 1 of 3 failures; 1 of 6 of the lineage"
    assert f"failures    {line}" in capsys.readouterr().out
    config = load_agent_config(shared.home, [])
    assert line in [finding.text for finding in examine_home(config)]
