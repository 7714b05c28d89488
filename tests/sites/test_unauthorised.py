"""What nobody pinned has signed is counted in one line; it grows neither chain, log nor disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from fedfactory.contracts.codec import digest_of, to_json
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.plans import RunEnded, SignedRunEnded
from fedfactory.contracts.updates import Reply
from fedfactory.identity.signing import Signer, new_signing_key
from site_agents.unauthorised import Unauthorised
from tests.sites.asking import about_logs, about_plan, questions_of
from tests.sites.rig import HUB, SITE, Coordinator, Site

STRANGER = Signer(new_signing_key())
MANY = 40


def chain(site: Site) -> list[dict[str, Any]]:
    lines = (site.home / "audit" / "chain.jsonl").read_text().splitlines()
    return [json.loads(line)["entry"] for line in lines]


def ending(site: Site) -> str:
    wanted = RunEnded(
        coordinator=HUB, run_id="run-1", terms_digest=digest_of(site.coordinator.terms()), site=SITE
    )
    return to_json(SignedRunEnded(run_ended=wanted, signature=STRANGER.sign(wanted)))


def order(site: Site, number: int) -> str:
    """An order of the coordinator's name, under other keys."""
    stranger = Coordinator()
    terms = stranger.terms(run_id=f"run-{number}")
    return stranger.delivery(stranger.order(site.base, terms), terms)


def unsigned_plan(site: Site, number: int) -> str:
    """An order that the coordinator signs, under a plan that no operator signed."""
    coordinator = site.coordinator
    operator, coordinator.operator = coordinator.operator, STRANGER
    try:
        return site.delivery(coordinator.terms(run_id=f"run-{number}"))
    finally:
        coordinator.operator = operator


@pytest.mark.rule("43")
def test_a_flood_is_one_line_when_the_books_are_closed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(chain(site))
    questions = questions_of(site)
    began = time.time()
    with caplog.at_level(logging.INFO):
        for number in range(MANY):
            for text in (order(site, number), unsigned_plan(site, number)):
                reply = site.answer(text)
                assert isinstance(reply, Reply)
                assert reply.refusal is not None
                assert (reply.refusal.code, reply.anchor) == ("not_authorised", None)
            assert site.answer(ending(site)) is None
            assert site.answer("no order at all") is None
            questions.answer(about_plan(site, key=STRANGER))
            questions.answer(about_logs(site, key=STRANGER))
        assert len(chain(site)) == before
        assert len(list((site.home / "refused").iterdir())) == 1
        site.restart()
    (line,) = chain(site)[before:]
    assert line["event"] == "unauthorised"
    assert line["kinds"] == {
        "ending": MANY, "message": MANY, "order": 2 * MANY, "question": 2 * MANY,
    }  # fmt: skip
    assert line["count"] == 6 * MANY
    assert str(time.gmtime(began).tm_year) in line["first"] <= line["last"]
    assert len(caplog.records) == 2


def test_without_a_policy_no_key_is_pinned_and_nobody_is_recorded(site: Site) -> None:
    (site.home / "policy.yaml").chmod(0o666)
    before = len(chain(site))
    assert [site.code(site.coordinator.terms(run_id=f"r{n}")) for n in range(MANY)] == [
        "no_policy"
    ] * MANY
    questions_of(site).answer(about_logs(site))
    questions_of(site).answer(about_plan(site))
    site.answer(ending(site))
    assert len(chain(site)) == before
    site.restart()
    (line,) = chain(site)[before:]
    assert line["kinds"] == {"ending": 1, "order": MANY, "question": 2}


def test_those_who_are_pinned_are_recorded_as_ever(site: Site) -> None:
    before = len(chain(site))
    assert site.code(task="other") == "outside_plan"
    questions_of(site).answer(about_plan(site))
    assert [entry["event"] for entry in chain(site)[before:]] == ["refused", "answered"]
    site.restart()
    assert len(chain(site)) == before + 2


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_period_ends_by_itself_and_the_next_begins_with_a_message() -> None:
    entries: list[Any] = []
    tally = Unauthorised(entries.append, period_s=0.2)
    assert tally.note("order", "x\n\x1b" + "y" * 1000)
    assert not tally.note("order", "")
    eventually(lambda: len(entries) == 1)
    assert entries[0]["count"] == 2
    assert entries[0]["finding"].isprintable()
    assert len(entries[0]["finding"]) <= 300
    time.sleep(0.5)
    assert len(entries) == 1, "a quiet period has no line"
    assert tally.note("question", "")
    tally.close()
    assert [entry["kinds"] for entry in entries] == [{"order": 2}, {"question": 1}]
    tally.close()
    assert len(entries) == 2


def test_what_could_not_be_recorded_is_counted_on() -> None:
    entries: list[Any] = []
    broken = True

    def record(entry: Any) -> None:
        if broken:
            raise EnvironmentFailedError("full")
        entries.append(entry)

    tally = Unauthorised(record)
    tally.note("order", "")
    tally.close()
    tally.note("order", "")
    broken = False
    tally.close()
    assert [entry["count"] for entry in entries] == [2]
