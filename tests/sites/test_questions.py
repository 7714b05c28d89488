"""A coordinator that asks what it may not, or too much: it hears a code, or nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.plans import SignedTerms
from fedfactory.contracts.questions import Answer, Query, SignedQuery, SiteLogs
from fedfactory.identity.signing import Signer, new_signing_key
from site_agents.questions import LONGEST_WISH_S, MAX_QUESTION_CHARS
from site_agents.rate import BURST, EVERY_S
from tests.sites.asking import about_logs, about_plan, fitness, questions_of, signed
from tests.sites.rig import INITIAL, SITE, Coordinator, Site

STRANGER = Signer(new_signing_key())
OF_A_TERABYTE = Coordinator().terms(initial=BlobRef(digest=INITIAL.digest, bytes=10**12))


@pytest.fixture
def open_site(make_site: Callable[..., Site]) -> Site:
    return make_site(logs="outcomes")


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ({"key": STRANGER}, "not_authorised"),
        ({"operator": STRANGER}, "not_authorised"),
        ({"to": "lumi"}, "outside_plan"),
        ({"terms": OF_A_TERABYTE}, "outside_plan"),
    ],
    ids=["a stranger's question", "a stranger's plan", "another site's", "a model of 1 TB"],
)
def test_a_plan_that_is_not_believed(site: Site, lie: dict[str, Any], code: str) -> None:
    before = site.books.anchor().ledger_sequence
    assert fitness(site, about_plan(site, **lie)) == code
    assert site.books.anchor().ledger_sequence == before


def test_a_signature_over_another_question_does_not_count(site: Site) -> None:
    first = from_json(SignedQuery, about_plan(site))
    terms = site.coordinator.terms(rounds=6)
    plan = SignedTerms(terms=terms, signature=site.coordinator.operator.sign(terms))
    other = Query(site=SITE, signed=plan, receipt=None, logs=None)
    forged = SignedQuery(query=other, signature=first.signature)
    assert fitness(site, to_json(forged)) == "not_authorised"
    # Nor does one over the same terms that the operator did not sign.
    plan = SignedTerms(terms=terms, signature=first.query.signed.signature)
    asked = Query(site=SITE, signed=plan, receipt=None, logs=None)
    assert fitness(site, signed(site.coordinator, asked)) == "not_authorised"


def test_an_order_is_no_question_and_a_question_is_no_order(site: Site) -> None:
    assert questions_of(site).answer(site.delivery()) is None
    assert site.answer(about_plan(site)) is None
    assert site.executions() == 0


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", "\x00", '{"query":{}}', "[" * 5000, "x" * (MAX_QUESTION_CHARS + 1)],
    ids=["nothing", "empty", "list", "null", "nul", "half", "deep", "oversized"],
)
def test_what_is_no_question_is_not_answered(site: Site, text: str) -> None:
    before = site.books.anchor()
    assert questions_of(site).answer(text) is None
    assert site.books.anchor() == before


@pytest.mark.parametrize(
    "change",
    [
        {"model_bytes": 500},
        {"logs": {}},
        {"signed": None},
        {"extra": 1},
    ],
)
def test_a_question_of_another_form_is_not_answered(site: Site, change: dict[str, Any]) -> None:
    value = json.loads(about_plan(site))
    value["query"] |= change
    assert questions_of(site).answer(json.dumps(value)) in (None, _unsigned())


def _unsigned() -> Answer:
    from fedfactory.contracts.questions import Preflight
    from fedfactory.contracts.versions import own_version

    return Answer(preflight=Preflight(code="not_authorised", version=own_version()), logs=None)


def test_more_questions_than_a_person_asks_are_not_answered(site: Site) -> None:
    now = [0.0]
    questions = questions_of(site, clock=lambda: now[0])
    text = about_plan(site)
    answers = [questions.answer(text) for _ in range(BURST + 5)]
    assert [answer is not None for answer in answers] == [True] * BURST + [False] * 5
    now[0] += EVERY_S
    assert [questions.answer(text) is not None for _ in range(2)] == [True, False]


# ---- logs ------------------------------------------------------------------------------------


def logs(site: Site, text: str) -> SiteLogs:
    answer = questions_of(site).answer(text)
    assert answer is not None
    assert answer.logs is not None
    return answer.logs


def test_a_policy_that_says_nothing_of_logs_lets_none_out(site: Site) -> None:
    assert site.code() is None
    assert logs(site, about_logs(site)) == SiteLogs(status="withheld", lines=())


def test_outcomes_are_let_out_and_nothing_else(open_site: Site) -> None:
    site, began = open_site, time.time()
    assert site.code() is None
    assert site.code(seed=2) == "conflict"
    assert site.code(round=2) is None
    assert site.code(run_id="x" * 100_000) == "bad_order"
    assert site.code(site.coordinator.terms(run_id="run-2")) is None
    found = logs(site, about_logs(site))
    assert found.status == "let_out"
    assert [(line.round, line.kind, line.outcome, line.seconds) for line in found.lines] == [
        (1, "train", "begun", None),
        (1, "train", "update", 2.0),  # the worker's 1.5 s, whole under privacy
        (1, "train", "conflict", None),
        (2, "train", "begun", None),
        (2, "train", "update", 2.0),
    ]
    assert all(line.at == int(line.at) for line in found.lines)
    assert all(began - 1 <= line.at <= time.time() for line in found.lines)
    assert [line.outcome for line in logs(site, about_logs(site, run_id="run-2")).lines] == [
        "begun",
        "update",
    ]
    assert logs(site, about_logs(site, run_id="run-9")).lines == ()


def test_that_a_worker_died_on_private_data_is_not_told(open_site: Site) -> None:
    from site_agents.executors.executor import WorkerLostError

    def fault(job: object) -> None:
        raise WorkerLostError

    open_site.executor.fault = fault
    assert open_site.code() == "work_failed"
    assert open_site.executions() == 2
    found = logs(open_site, about_logs(open_site))
    assert [line.outcome for line in found.lines] == ["begun", "work_failed"]


@pytest.mark.parametrize(
    "lie",
    [
        {"key": STRANGER},
        {"operator": STRANGER},
        {"to": "lumi"},
        {"of": "lumi"},
        {"coordinator": "other"},
        {"not_after": 1.0},
        {"not_after": 4e9},
    ],
    ids=[
        "a stranger's question", "a stranger's wish", "to another site", "of another site",
        "another coordinator's", "too late", "for years",
    ],
)  # fmt: skip
def test_a_wish_that_is_not_believed(open_site: Site, lie: dict[str, Any]) -> None:
    assert open_site.code() is None
    answer = questions_of(open_site).answer(about_logs(open_site, **lie))
    assert answer is None or answer.logs == SiteLogs(status="not_authorised", lines=())


def test_a_wish_is_granted_once(open_site: Site, coordinator: Coordinator) -> None:
    questions, text = questions_of(open_site), about_logs(open_site)
    assert [questions.answer(text).logs.status for _ in range(2)] == ["let_out", "not_authorised"]
    late = about_logs(open_site, not_after=time.time() + LONGEST_WISH_S - 5)
    assert questions.answer(late).logs.status == "let_out"


def test_broken_books_let_nothing_out(open_site: Site) -> None:
    assert open_site.code() is None
    chain = open_site.home / "audit" / "chain.jsonl"
    chain.write_bytes(chain.read_bytes()[:-10])
    assert logs(open_site, about_logs(open_site)).lines == ()
