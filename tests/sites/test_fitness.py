"""Whether a site would take part: what its first order would be told, and nothing done for it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfactory.contracts.versions import own_version
from site_agents import control
from site_agents.executors.executor import NeverBegunError, NoDataError, WorkerLostError
from site_agents.policy import Hours
from tests.patience import HANG_S
from tests.sites.asking import about_plan, fitness, questions_of
from tests.sites.rig import OPEN, PRIVACY, TRAINING, Coordinator, Site, changed

# What a site may say before it touches data, of an order or of a plan.
BEFORE_DATA = {
    "not_authorised", "bad_order", "outside_plan", "policy_task", "policy_parameters",
    "policy_privacy", "policy_limits", "no_policy", "books_broken", "paused", "killed",
    "bad_parameters", "no_data", "too_few_examples", "budget_exhausted", "worker_lost",
}  # fmt: skip


def test_a_site_that_would_take_part_says_so_and_does_nothing(site: Site) -> None:
    before = site.books.anchor()
    answer = questions_of(site).answer(about_plan(site))
    assert answer.preflight.code == ""
    assert answer.preflight.version == own_version()
    assert (site.executions(), site.executor.described, site.steps_spent()) == (0, 0, 0)
    after = site.books.anchor()
    assert after.ledger_sequence == before.ledger_sequence  # nothing is held
    assert after.audit_length == before.audit_length + 1  # and what was said is written down
    assert '"answered"' in (site.home / "audit" / "chain.jsonl").read_text().splitlines()[-1]


def test_asked_again_while_its_run_goes_on_it_is_still_fit(site: Site) -> None:
    """A coordinator asks so before it lets a run go on: what the run holds is its own."""
    assert site.code() is None
    assert fitness(site, about_plan(site)) == ""


def test_a_run_that_no_longer_fits_beside_the_others_is_told_so(
    site: Site, coordinator: Coordinator
) -> None:
    codes = []
    for number in range(1, 20):
        terms = coordinator.terms(run_id=f"run-{number}")
        codes.append((fitness(site, about_plan(site, terms)), site.code(terms) or ""))
    assert ("budget_exhausted", "budget_exhausted") in codes
    assert [told for told, _ in codes] == [met for _, met in codes]


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another task": ({}, {"task": "tabular", "task_parameters": {}}),
    "no such task": ({"tasks": {"digits": "cohort"}}, {"task": "no_such"}),
    "a parameter out of its schema": ({}, {"task_parameters": {"model": "gpt"}}),
    "no DP-SGD": ({}, {"task_parameters": {"model": "cnn_bn"}}),
    "too many epochs": ({}, {"training": dataclasses.replace(TRAINING, local_epochs=6)}),
    "no privacy": ({}, {"privacy": None}),
    "too much epsilon": ({}, {"privacy": dataclasses.replace(PRIVACY, target_epsilon=3.5)}),
    "another delta": ({}, {"privacy": dataclasses.replace(PRIVACY, delta=1e-3)}),
    "too many rounds": ({}, {"rounds": 11}),
    "hardly any noise": (
        {}, {"privacy": dataclasses.replace(PRIVACY, target_epsilon=None, noise_multiplier=0.01)},
    ),
    "a closed hour": ({"hours": Hours(start=0, end=1, time_zone="UTC")}, {}),
    "a model too large": ({"max_model_bytes": 10}, {}),
    "an ended plan": ({}, {"not_after": 1.0}),
    "another site's plan": ({}, {"sites": ("lumi",)}),
    "too many evaluations": ({"max_evaluations": 1}, {}),
    "no key pinned": ({"operators": {}}, {}),
    "no coordinator pinned": ({"coordinators": {}}, {}),
    "all well": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_the_first_order_would_be_told(
    make_site: Callable[..., Site], coordinator: Coordinator, case: str
) -> None:
    policy, plan = CASES[case]
    site = make_site(**policy)
    terms = coordinator.terms(**plan)
    told = fitness(site, about_plan(site, terms))
    assert told == (site.code(terms) or "")
    assert (told == "") == (case == "all well")


@pytest.mark.parametrize("word", ["paused", "draining", "killed"])
def test_it_says_what_the_administrator_said(site: Site, word: Any) -> None:
    control.set(site.home, word, by="admin", reason="maintenance")
    assert fitness(site, about_plan(site)) == site.code()


def test_a_policy_that_does_not_hold(site: Site) -> None:
    (site.home / "policy.yaml").write_text("egress: automatic\nextra: 1\n")
    assert fitness(site, about_plan(site)) == site.code() == "no_policy"


def test_books_that_do_not_hold(site: Site) -> None:
    assert site.code() is None
    chain = site.home / "audit" / "chain.jsonl"
    chain.write_bytes(b"".join(chain.read_bytes().splitlines(keepends=True)[:-1]))
    assert fitness(site, about_plan(site)) == "books_broken"
    assert site.code(round=2) == "books_broken"


def test_a_source_that_agent_yaml_does_not_name_costs_nothing(site: Site) -> None:
    agent = site.home / "agent.yaml"
    agent.write_text(agent.read_text().replace("cohort:", "other:"))
    site.restart()
    answer = questions_of(site, sources=frozenset({"other"})).answer(about_plan(site))
    assert answer.preflight.code == "no_data"
    assert site.code() == "no_data"
    assert (site.executions(), site.steps_spent()) == (0, 0)


def test_without_privacy_a_worker_counts_as_it_would_for_the_order(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(without_dp=OPEN)
    terms = coordinator.terms(privacy=None)
    assert fitness(site, about_plan(site, terms)) == ""
    assert site.executor.described == 1
    site.executor.facts = dataclasses.replace(site.executor.facts, train=9)
    assert fitness(site, about_plan(site, terms)) == site.code(terms) == "too_few_examples"


def test_a_test_part_too_small_for_its_evaluations_is_told_before_the_run(
    make_site: Callable[..., Site], coordinator: Coordinator
) -> None:
    site = make_site(without_dp=OPEN)
    site.executor.facts = dataclasses.replace(site.executor.facts, evaluate=9)
    terms = coordinator.terms(privacy=None)
    assert fitness(site, about_plan(site, terms)) == "too_few_examples"
    assert fitness(site, about_plan(site, changed(terms, evaluate=False))) == ""
    private = coordinator.terms()
    assert fitness(site, about_plan(site, private)) == ""  # the count decides nothing there
    assert (site.code(terms), site.code(terms, kind="evaluate")) == (None, "too_few_examples")


@pytest.mark.parametrize("error", [NoDataError(), WorkerLostError(), NeverBegunError()])
def test_without_privacy_data_that_cannot_be_counted(
    make_site: Callable[..., Site], coordinator: Coordinator, error: Exception
) -> None:
    site = make_site(without_dp=OPEN)

    def describe(*arguments: object) -> None:
        raise error

    site.executor.describe = describe
    terms = coordinator.terms(privacy=None)
    assert fitness(site, about_plan(site, terms)) == site.code(terms) != ""


@pytest.mark.parametrize("error", [NoDataError(), WorkerLostError(), NeverBegunError()])
def test_with_privacy_the_form_of_the_data_is_asked_and_no_record(
    site: Site, coordinator: Coordinator, error: Exception
) -> None:
    terms = coordinator.terms()
    assert fitness(site, about_plan(site, terms)) == ""
    site.executor.misfit = error
    assert fitness(site, about_plan(site, terms)) == site.code(terms) != ""
    assert (site.executor.forms_checked, site.executor.described) == (3, 0)
    assert (site.executions(), site.steps_spent()) == (0, 0)


def test_a_count_that_takes_long_is_not_waited_for_and_not_begun_twice(
    make_site: Callable[..., Site], coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from site_agents.fitness import BriefCount

    site = make_site(without_dp=OPEN)
    release, begun = threading.Event(), []

    def describe(*arguments: object) -> object:
        begun.append(arguments)
        release.wait(HANG_S)
        return site.executor.facts

    site.executor.describe = describe
    questions = questions_of(site)
    brief = BriefCount(site.executor, patience_s=0.05)
    questions._ground = dataclasses.replace(questions._ground, worker=brief)
    text = about_plan(site, coordinator.terms(privacy=None))
    assert [questions.answer(text).preflight.code for _ in range(3)] == ["", "", ""]
    assert len(begun) == 1
    release.set()


@pytest.fixture
def fresh_site(make_site: Callable[..., Site]) -> Callable[..., Site]:
    return make_site


policies = st.fixed_dictionaries(
    {},
    optional={
        "without_dp": st.sampled_from([None, OPEN]),
        "rounds": st.sampled_from([2, 5, 50]),
        "max_evaluations": st.sampled_from([0, 3, 200]),
        "epsilon_per_run": st.sampled_from([0.5, 3.0, 9.0]),
        "delta": st.sampled_from([1e-7, 1e-5]),
        "max_model_bytes": st.sampled_from([100, 100_000]),
        "gpu_hours_per_run": st.sampled_from([1e-9, 24.0]),
        "tasks": st.sampled_from([{"digits": "cohort"}, {"breast_cancer": "cohort"}]),
    },
)
plans = st.fixed_dictionaries(
    {},
    optional={
        "rounds": st.sampled_from([1, 5, 20]),
        "evaluate": st.booleans(),
        "task": st.sampled_from(["digits", "breast_cancer", "no_such"]),
        "task_parameters": st.sampled_from([{"model": "mlp"}, {"model": "cnn_bn"}, {}, {"x": 1}]),
        "privacy": st.sampled_from(
            [
                None,
                PRIVACY,
                dataclasses.replace(PRIVACY, target_epsilon=0.1),
                dataclasses.replace(PRIVACY, evaluation_noise_multiplier=None),
                dataclasses.replace(PRIVACY, target_epsilon=None, noise_multiplier=1.0),
            ]
        ),
        "training": st.sampled_from(
            [
                TRAINING,
                dataclasses.replace(TRAINING, local_epochs=5, batch_size=1000),
                dataclasses.replace(TRAINING, max_steps=1),
                dataclasses.replace(TRAINING, lr=5.0),
            ]
        ),
        "sites": st.sampled_from([("cesga",), ("lumi",)]),
    },
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(policy=policies, plan=plans, examples=st.sampled_from([5, 60, 400]))
def test_fit_means_not_refused_before_data(
    fresh_site: Callable[..., Site],
    coordinator: Coordinator,
    policy: dict[str, Any],
    plan: dict[str, Any],
    examples: int,
) -> None:
    site = fresh_site(**policy)
    site.executor.facts = dataclasses.replace(site.executor.facts, train=examples)
    terms = changed(coordinator.terms(), **plan)
    told = fitness(site, about_plan(site, terms))
    assert (site.executions(), site.steps_spent()) == (0, 0)
    met = site.code(terms) or ""
    assert told == met
    assert met in BEFORE_DATA | {""}
