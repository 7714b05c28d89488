"""A run that is over gives back what it holds, and nothing else can."""

from __future__ import annotations

from typing import Any

import pytest

from fedfactory.contracts.codec import digest_of, to_json
from fedfactory.contracts.plans import Anchor, RunEnded, SignedRunEnded
from fedfactory.identity.signing import Signer, new_signing_key
from tests.sites.rig import HUB, LINEAGE, SITE, Coordinator, Site


def ending(hub: Coordinator, *, key: Signer | None = None, **changes: Any) -> str:
    values = {
        "coordinator": HUB,
        "run_id": "run-1",
        "terms_digest": digest_of(hub.terms()),
        "site": SITE,
    }
    word = RunEnded(**{**values, **changes})
    return to_json(SignedRunEnded(run_ended=word, signature=(key or hub.key).sign(word)))


def held(site: Site) -> int:
    return sum(site.books._ledger.budget.held(LINEAGE, 0.0).values())


def test_what_an_ended_run_holds_returns(site: Site, coordinator: Coordinator) -> None:
    first = site.ask()
    spent, before = site.steps_spent(), site.books.anchor().ledger_sequence
    assert held(site) > 0
    anchor = site.answer(ending(coordinator))
    assert isinstance(anchor, Anchor)
    assert anchor.ledger_sequence == before + 1
    assert (held(site), site.steps_spent()) == (0, spent)
    assert site.ask().update == first.update  # what is done is answered again
    assert site.code(round=2) == "budget_exhausted"  # and nothing new is done
    assert site.answer(ending(coordinator)) == site.books.anchor()
    assert site.steps_spent() == spent


def test_a_failed_run_leaves_room_for_the_next(site: Site, coordinator: Coordinator) -> None:
    blocked = None
    for number in range(1, 20):
        terms = coordinator.terms(run_id=f"run-{number}")
        if site.code(terms) == "budget_exhausted":
            blocked = terms
            break
    assert blocked is not None
    plan = digest_of(coordinator.terms())
    assert isinstance(site.answer(ending(coordinator, terms_digest=plan)), Anchor)
    assert site.code(blocked) is None


@pytest.mark.parametrize(
    "changes",
    [{"site": "lumi"}, {"coordinator": "other"}, {"key": Signer(new_signing_key())}],
    ids=["another site's", "another coordinator's", "a stranger's"],
)
def test_a_word_that_is_not_believed(
    site: Site, coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    site.ask()
    before = held(site)
    assert site.answer(ending(coordinator, **changes)) is None
    assert held(site) == before


@pytest.mark.parametrize("changes", [{"run_id": "run-9"}, {"terms_digest": "sha256:" + "1" * 64}])
def test_a_run_that_is_not_known_changes_nothing(
    site: Site, coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    site.ask()
    before = (held(site), site.books.anchor())
    assert site.answer(ending(coordinator, **changes)) == before[1]
    assert (held(site), site.books.anchor()) == before
