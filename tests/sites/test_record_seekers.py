"""A coordinator, with an operator's key, that wants to know of one record more than it is charged for.

Its signatures are good and each order holds together; it plays rounds, runs, refunds, failures and
changes of the site's policy against each other.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.updates import Reply
from fedfactory.privacy.accounting import epsilon_of
from fedfactory.privacy.sampling import sampling
from site_agents import control
from site_agents.executors.executor import NeverBegunError, NoDataError, WorkerLostError
from site_agents.failures import FAILURES, MOST_FAILURES
from site_agents.jobs.job import Job
from site_agents.policy import DataRule, OneOf, Range, TaskRule
from tests.sites.rig import LINEAGE, OPEN, PRIVACY, PUBLIC_SIZE, TRAINING, Coordinator, Site

STEPS = sampling(TRAINING, PUBLIC_SIZE).steps
COLUMNS = {
    "kind": "classification",
    "label": "outcome:0|1",
    "numeric": "age:50:20",
    "categorical": "sex:f|m",
    "model": "linear",
    "hidden": 8,
}
DECLARED = TaskRule(
    source="cohort",
    parameters={n: OneOf((COLUMNS[n],)) for n in ("label", "numeric", "categorical")},
)


def epsilon_spent(site: Site) -> float:
    ledger = site.books._ledger
    return epsilon_of(ledger.accountant, ledger.budget.spendings[LINEAGE], 1e-5)


def failing(error: Exception) -> Callable[[Job], None]:
    def fault(job: Job) -> None:
        raise error

    return fault


# ---- questions asked by failures -------------------------------------------------------------


def test_what_fits_a_column_is_not_the_coordinators_question(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    """'Is anybody older than x?': a range that a record is out of would make the work fail."""
    site = make_site(tasks={"tabular": "cohort"})
    asked = coordinator.terms(task="tabular", task_parameters=COLUMNS)
    assert site.code(asked) == "policy_parameters"
    site.write_policy(tasks={"tabular": DECLARED})
    older = {**COLUMNS, "numeric": "age:50:0.00002"}
    assert (
        site.code(coordinator.terms(task="tabular", task_parameters=older)) == "policy_parameters"
    )
    assert (site.executions(), site.steps_spent()) == (0, 0)
    assert site.code(asked) is None


SERIES = {
    "kind": "classification",
    "label": "fails:0|1",
    "sensors": "heat:70:10",
    "order": "cycle",
    "window": 32,
    "stride": 8,
    "channels": 8,
}


def pinned(**parameters: Any) -> TaskRule:
    return TaskRule(source="cohort", parameters=parameters)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.rule("26")
def test_a_run_of_plans_over_windows_learns_nothing(
    make_site: Callable[..., Site], coordinator: Coordinator, *, private: bool
) -> None:
    """'Has any machine so long a stay?', asked by bisection: one value alone is answered."""
    fixed = {n: OneOf((v,)) for n, v in SERIES.items() if n not in ("kind", "channels")}
    site = make_site(tasks={"timeseries": pinned(**fixed)}, without_dp=None if private else OPEN)
    del fixed["window"]
    codes = {}
    for rule in (pinned(**fixed), pinned(**fixed, window=OneOf((32, 64)))):
        site.write_policy(tasks={"timeseries": rule}, without_dp=None if private else OPEN)
        for number, window in enumerate((8, 16, 32, 64, 4096)):
            terms = coordinator.terms(
                task="timeseries",
                task_parameters={**SERIES, "window": window},
                run_id=f"run-{number}",
                nonce=f"{number}",
                privacy=PRIVACY if private else None,
            )
            codes[window] = site.code(terms)
        if private:
            assert set(codes.values()) == {"policy_parameters"}
            assert (site.executions(), site.steps_spent()) == (0, 0)
    if not private:
        assert codes == {
            8: "policy_parameters",
            16: "policy_parameters",
            32: None,
            64: None,
            4096: "policy_parameters",
        }


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *(
            (n, rule)
            for n in ("label", "sensors", "order", "window", "stride")
            for rule in ("open", "two")
        ),
        ("window", "range"),
        ("stride", "range"),
    ],
)
@pytest.mark.rule("26")
def test_a_data_parameter_that_is_not_fixed_is_refused_and_what_to_write_is_said(
    make_site: Callable[..., Site],
    coordinator: Coordinator,
    name: str,
    rule: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fixed: dict[str, Any] = {
        n: OneOf((v,)) for n, v in SERIES.items() if n not in ("kind", "channels")
    }
    whole = dict(fixed)
    if rule == "open":
        del fixed[name]
    elif rule == "two":
        fixed[name] = OneOf((SERIES[name], "other"))
    else:
        fixed[name] = Range(1, 4096)
    site = make_site(tasks={"timeseries": pinned(**fixed)})
    terms = coordinator.terms(task="timeseries", task_parameters=SERIES)
    assert site.code(terms) == "policy_parameters"
    quoted = json.dumps(SERIES[name])
    assert f"parameters: {{{name}: [{quoted}]}}" in caplog.text
    assert (site.executions(), site.steps_spent()) == (0, 0)
    site.write_policy(tasks={"timeseries": pinned(**whole)})
    assert site.code(terms) is None


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoDataError("a column is gone"), "no_data"),
        (WorkerLostError("gone"), "worker_lost"),
        (NeverBegunError("no room"), "paused"),
    ],
)
@pytest.mark.rule("27")
def test_data_of_another_form_are_refused_before_anything_is_paid(
    site: Site, error: Exception, code: str
) -> None:
    """The form is looked at, no record is counted, and the ledger is as it was."""
    site.executor.misfit = error
    for _ in range(MOST_FAILURES + 1):
        assert site.code() == code
    assert site.executor.forms_checked == MOST_FAILURES + 1
    assert (site.executions(), site.steps_spent(), site.executor.described) == (0, 0, 0)
    assert not site.books._ledger.budget.runs
    site.executor.misfit = None
    assert site.code() is None  # and none of it was counted as a failure
    assert site.executor.described == 0


def test_what_describes_the_model_alone_may_be_left_open(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    fixed = {n: OneOf((v,)) for n, v in SERIES.items() if n not in ("kind", "channels")}
    site = make_site(tasks={"timeseries": pinned(**fixed, channels=Range(4, 512))})
    for number, channels in enumerate((4, 8, 512)):
        terms = coordinator.terms(
            task="timeseries",
            task_parameters={**SERIES, "channels": channels},
            run_id=f"run-{number}",
            rounds=1,
        )
        assert site.code(terms) is None


def test_without_privacy_columns_may_be_left_open(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(tasks={"tabular": "cohort"}, without_dp=OPEN)
    assert (
        site.code(coordinator.terms(task="tabular", task_parameters=COLUMNS, privacy=None)) is None
    )


def test_failures_count_over_runs_and_restarts_until_a_person_looked(
    site: Site, coordinator: Coordinator
) -> None:
    """Each tells a bit that is not paid for: more runs, or an agent that ticks, give no more."""
    site.executor.failure = "work_failed"
    runs = [
        coordinator.terms(run_id=f"run-{n}", nonce=str(n), rounds=1)
        for n in range(MOST_FAILURES + 2)
    ]
    for terms in runs[:MOST_FAILURES]:
        assert site.code(terms) == "work_failed"
        site.restart()
    done = site.executions()
    site.executor.failure = None
    assert site.code(runs[MOST_FAILURES]) == "paused"
    assert site.executions() == done
    control.clear(site.home, by="ada", reason="the disk was full")
    assert site.code(runs[MOST_FAILURES]) is None


def test_a_count_of_failures_that_does_not_hold_stops_private_work(site: Site) -> None:
    (site.home / FAILURES).write_text("{")
    assert site.code() == "paused"
    control.clear(site.home, by="ada", reason="looked")
    assert site.code() is None


@pytest.mark.rule("28")
def test_refusals_of_private_work_are_alike_but_for_the_books(
    make_site: Callable[..., Site],
) -> None:
    """Whichever way it failed, the same words in the same length leave."""
    replies = []
    for failure, tensors in (("bad_model", None), ("work_failed", None), (None, {})):
        site = make_site()
        site.executor.failure = failure
        if tensors is not None:
            site.executor.tensors = {"w": site.executor.tensors["w"]}
        reply = site.ask()
        assert reply.refusal is not None
        replies.append(to_json(dataclasses.replace(reply, anchor=None)))
    assert len(set(replies)) == 1


# ---- what an update says beside its tensors --------------------------------------------------


@pytest.mark.rule("32")
def test_nothing_that_a_worker_counted_leaves_with_private_training(site: Site) -> None:
    """The worker here says 400 examples, a loss and an accuracy, as one without privacy would."""
    update = site.ask().update
    assert update is not None
    assert update.metrics == {}
    assert update.examples == PUBLIC_SIZE
    assert update.seconds == int(update.seconds)  # its digits follow the batches drawn


# ---- one thing done twice --------------------------------------------------------------------


def test_a_refund_gives_another_order_a_chance_and_no_second_look(
    site: Site, coordinator: Coordinator
) -> None:
    site.executor.fault = failing(NeverBegunError("no room"))
    assert site.code() == "paused"
    assert site.steps_spent() == 0
    site.executor.fault = lambda job: None
    other = dataclasses.replace(TRAINING, lr=0.05)
    assert site.code(training=other) is None
    assert site.code() == "conflict"
    assert site.steps_spent() == STEPS


def test_work_that_began_once_is_bound_whatever_came_after(site: Site) -> None:
    """The first attempt may have seen data; only the second, which never began, is paid back."""
    errors = [WorkerLostError("gone"), NeverBegunError("no room")]

    def fault(job: Job) -> None:
        raise errors.pop(0)

    site.executor.fault = fault
    assert site.code() == "paused"
    assert site.steps_spent() == STEPS
    site.executor.fault = lambda job: None
    assert site.code(seed=2) == "conflict"
    assert site.code() is None
    assert site.steps_spent() == 2 * STEPS


def test_orders_side_by_side_pass_no_cap_and_are_each_done_once(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(epsilon_per_lineage=4.0)
    plans: list[RunTerms] = [
        coordinator.terms(run_id=f"run-{n}", nonce=str(n), rounds=1) for n in range(4)
    ]
    texts = [
        site.delivery(terms, kind=kind)
        for terms in plans
        for kind in ("train", "evaluate")
        for _ in range(2)
    ]
    replies: list[object] = []
    threads = [
        threading.Thread(target=lambda text=text: replies.append(site.answer(text)))
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(replies) == len(texts)
    done = {reply.work for reply in replies if isinstance(reply, Reply) and reply.update}
    assert site.executions() == len(done) > 0
    assert 0 < epsilon_spent(site) <= 4.0


# ---- what changes between rounds -------------------------------------------------------------


def test_each_round_is_executed_with_the_noise_rate_and_steps_that_it_was_charged(
    site: Site,
) -> None:
    shapes = [
        TRAINING,
        dataclasses.replace(TRAINING, local_epochs=1),
        dataclasses.replace(TRAINING, max_steps=3),
        dataclasses.replace(TRAINING, lr=0.01, proximal_mu=1e6),
    ]
    for number, training in enumerate(shapes, 1):
        before = site.steps_spent()
        assert site.code(round=number, training=training) is None
        mechanism = site.executor.jobs[-1].mechanism
        assert mechanism is not None
        assert mechanism.steps == site.steps_spent() - before
    rates = {
        (job.mechanism.noise_multiplier, job.mechanism.sample_rate) for job in site.executor.jobs
    }
    (held,) = site.books._ledger.budget.runs.values()
    cost = held.planned[0].cost
    assert rates == {(cost.noise_multiplier, cost.sample_rate)}


@pytest.mark.parametrize(
    "rule",
    [
        DataRule(lineage=LINEAGE, public_size=50, unit="row"),
        DataRule(lineage=LINEAGE, public_size=5000, unit="row"),
        DataRule(lineage=LINEAGE, public_size=PUBLIC_SIZE, unit="patient"),
        DataRule(lineage="others", public_size=PUBLIC_SIZE, unit="row"),
    ],
)
def test_a_run_goes_on_only_as_it_was_admitted(site: Site, rule: DataRule) -> None:
    """Its rate, its unit and its population are what its noise and its epsilon are of."""
    assert site.code() is None
    spent = site.steps_spent()
    site.write_policy(data={"cohort": rule})
    assert site.code(round=2) == "budget_exhausted"
    assert site.steps_spent() == spent
    site.write_policy()
    assert site.code(round=2) is None


def test_a_result_left_behind_says_what_its_run_was_admitted_with(site: Site) -> None:
    """The agent ended before it wrote the result down, and the policy has changed since."""
    commit = site.books.commit

    def full(key: object, update: object) -> None:
        raise OSError(28, "No space left on device")

    site.books.commit = full  # type: ignore[method-assign]
    assert site.code() == "transfer_failed"
    site.books.commit = commit  # type: ignore[method-assign]
    site.write_policy(
        data={"cohort": DataRule(lineage="unopened", public_size=PUBLIC_SIZE, unit="patient")}
    )
    reply = site.ask()
    assert reply.update is not None
    assert reply.update.privacy is not None
    assert reply.update.privacy.unit == "row"
    assert (site.executions(), site.steps_spent()) == (1, STEPS)


def test_a_cap_that_was_lowered_holds_for_runs_under_way(site: Site) -> None:
    assert site.code() is None
    tight = epsilon_spent(site) * 1.01
    site.write_policy(epsilon_per_run=tight, epsilon_per_lineage=tight)
    lower = [site.code(round=n) for n in (2, 3)]
    assert set(lower) <= {"budget_exhausted", "policy_privacy"}
    assert epsilon_spent(site) <= tight


def test_a_given_noise_gets_no_further_than_a_target(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(epsilon_per_lineage=6.0)
    given = dataclasses.replace(PRIVACY, target_epsilon=None, noise_multiplier=2.0)
    for number in range(12):
        terms = coordinator.terms(
            run_id=f"run-{number}", nonce=str(number), rounds=1, privacy=given
        )
        site.ask(terms)
        site.ask(terms, kind="evaluate")
    assert 3.0 < epsilon_spent(site) <= 6.0


def test_a_smaller_delta_costs_more_and_a_larger_one_is_refused(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    noises = {}
    for delta in (1e-5, 1e-9, 5e-324):
        site = make_site()
        plan = dataclasses.replace(PRIVACY, delta=delta)
        code = site.code(coordinator.terms(privacy=plan))
        if code is None:
            noises[delta] = site.executor.jobs[-1].mechanism.noise_multiplier
        else:
            assert code == "budget_exhausted"
    assert noises[1e-9] > noises[1e-5]
    larger = dataclasses.replace(PRIVACY, delta=1.1e-5)
    assert make_site().code(coordinator.terms(privacy=larger)) == "policy_privacy"
