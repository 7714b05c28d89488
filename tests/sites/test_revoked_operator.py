"""From a revocation on, nothing that the revoked key signed is worked on or leaves; nor a pin's end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.revocations import OperatorRevocation, SignedRevocation
from fedfactory.identity.signing import Signer, fingerprint, new_signing_key
from site_agents import control
from site_agents.policy.pins import day_text
from site_agents.revocations import REVOKED_FILE, Revocations
from tests.policy_orders import pin
from tests.sites.rig import HUB, Coordinator, Site

DAY_S = 86400


@pytest.fixture
def other() -> Signer:
    return Signer(new_signing_key())


@pytest.fixture
def both(tmp_path: Path, coordinator: Coordinator, other: Signer):
    """A site that pins olga, who signs the plans, and oleg."""
    operators = {
        "olga": pin(fingerprint(coordinator.operator.public_key)),
        "oleg": pin(fingerprint(other.public_key)),
    }
    made = Site(tmp_path, coordinator, operators=operators)
    yield made
    made.close()


def revoke(site: Site, by: Signer, whom: Signer, name: str) -> None:
    told = OperatorRevocation(
        coordinator=HUB, operator=name, key=fingerprint(whom.public_key), reason="", at=time.time()
    )
    text = to_json(SignedRevocation(revocation=told, signature=by.sign(told)))
    Revocations(site.home, site.books.record).take(text)


def test_an_admitted_runs_later_orders_are_refused(
    both: Site, coordinator: Coordinator, other: Signer
) -> None:
    terms = coordinator.terms()
    assert both.code(terms) is None
    begun, spent = both.executions(), both.steps_spent()
    revoke(both, other, coordinator.operator, "olga")
    assert both.code(terms, round=2) == "not_authorised"
    both.restart()
    assert both.code(terms, round=2) == "not_authorised"
    assert both.code(terms) == "not_authorised"  # not even what is done is sent again
    assert (both.executions(), both.steps_spent()) == (begun, spent)
    coordinator.operator = other
    assert both.code(coordinator.terms(run_id="another")) is None


def test_a_result_that_was_worked_on_meanwhile_stays(
    both: Site, coordinator: Coordinator, other: Signer
) -> None:
    both.executor.fault = lambda _: revoke(both, other, coordinator.operator, "olga")
    assert both.code() == "not_authorised"
    assert both.executions() == 1
    assert list(both.received.iterdir()) == []


@pytest.mark.parametrize("word", ["revoked", "killed"])
def test_a_word_that_comes_while_private_work_is_tried_comes_before_its_budget(
    both: Site,
    coordinator: Coordinator,
    other: Signer,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
) -> None:
    """Base model and trial take minutes: then nothing is reserved and no record is touched."""

    def say(_: object) -> None:
        if word == "killed":
            control.set(both.home, "killed", by="ana", reason="an incident")
        else:
            revoke(both, other, coordinator.operator, "olga")

    monkeypatch.setattr(both.executor, "rehearse", say)
    assert both.code() == {"killed": "killed", "revoked": "not_authorised"}[word]
    assert (both.executions(), both.steps_spent()) == (0, 0)


def test_who_was_revoked_is_not_known_so_nobody_asks(both: Site) -> None:
    (both.home / REVOKED_FILE).write_text("half")
    assert both.code() == "not_authorised"
    assert both.executions() == 0


@pytest.mark.parametrize(("days", "code"), [(-1, "not_authorised"), (0, None), (1, None)])
@pytest.mark.rule("37")
def test_a_pin_counts_to_the_end_of_its_day(
    both: Site, coordinator: Coordinator, days: int, code: str | None
) -> None:
    key = fingerprint(coordinator.operator.public_key)
    until = day_text(time.time() + days * DAY_S)
    both.write_policy(operators={"olga": pin(key, until=until)})
    assert both.code() == code
