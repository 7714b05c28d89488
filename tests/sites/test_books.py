"""The books together: what was seen of them elsewhere is held against their whole history."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedfactory.contracts.plans import Anchor
from site_agents.approvals import Approvals
from site_agents.assembly import open_books
from site_agents.books_view import BooksError
from site_agents.config import load_agent_config
from site_agents.policy import DataRule
from site_agents.second_place import SecondPlace
from tests.sites.rig import Site

OTHER = "sha256:" + "3" * 64


@pytest.fixture
def anchored(make_site: Callable[..., Site], tmp_path: Path) -> Site:
    """A site with a second place, after one round."""
    (tmp_path / "anchors").touch()
    site = make_site()
    site.books._second_place = SecondPlace(tmp_path / "anchors")
    assert site.code() is None
    return site


@pytest.mark.rule("40")
def test_what_the_second_place_saw_is_not_written_over_by_refusals(anchored: Site) -> None:
    """Nor by what is recorded of questions, commands and strangers: it stays found out for good."""
    ahead = replace(anchored.books.anchor(), ledger_sequence=99, audit_length=99)
    anchored.books._second_place.record(ahead)
    executions = anchored.executions()
    assert [anchored.code(round=number) for number in (2, 3, 4)] == ["books_broken"] * 3
    with pytest.raises(BooksError, match="the second place saw other books"):
        anchored.books.record({"event": "resume"})
    anchored.restart()
    anchored.books._second_place = SecondPlace(anchored.folder.parent / "anchors")
    assert anchored.code(round=2) == "books_broken"
    assert anchored.books._second_place.last() == ahead
    assert anchored.executions() == executions


CHANGES = {
    "as it was": ({}, None),
    "another site's": ({"site": "lumi"}, "another site"),
    "another ledger's": ({"ledger": "0f"}, "another ledger"),
    "a longer ledger": ({"ledger_sequence": 99}, "rolled back"),
    "another ledger head": ({"ledger_head": OTHER}, "not the one"),
    "a longer chain": ({"audit_length": 99}, "99 entries"),
    "another chain head": ({"audit_head": OTHER}, "shorter or another"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("keeper", ["coordinator", "second place"])
@pytest.mark.rule("40")
def test_an_anchor_is_held_against_the_books(anchored: Site, keeper: str, change: str) -> None:
    changes, finding = CHANGES[change]
    anchor: Anchor = replace(anchored.books.anchor(), **changes)
    receipt = anchor if keeper == "coordinator" else None
    if keeper == "second place":
        anchored.books._second_place.record(anchor)
    if finding is None:
        anchored.books.check(receipt)
        return
    with pytest.raises(BooksError, match=finding) as caught:
        anchored.books.check(receipt)
    assert keeper in str(caught.value)


@pytest.mark.rule("40")
def test_an_old_copy_that_has_grown_again_is_found(anchored: Site, tmp_path: Path) -> None:
    """Longer than what was seen, but not by the same way."""
    anchored.close()
    saved = tmp_path / "saved"
    shutil.copytree(anchored.home, saved)
    anchored.open()
    anchored.books._second_place = SecondPlace(tmp_path / "anchors")
    assert anchored.code(round=2) is None
    anchored.close()
    for stale in anchored.home.glob("ledger.sqlite-*"):
        stale.unlink()
    for path in saved.rglob("*"):
        if path.is_file():
            (anchored.home / path.relative_to(saved)).write_bytes(path.read_bytes())
    anchored.open()  # without its second place, or a receipt, it goes on and grows
    for number in (3, 4):
        assert anchored.code(round=number) is None
    anchored.books._second_place = SecondPlace(tmp_path / "anchors")
    assert anchored.code(round=5) == "books_broken"


def test_what_cannot_be_anchored_does_not_leave(anchored: Site) -> None:
    before = {p.name for p in anchored.received.iterdir()}
    anchored.books._second_place = SecondPlace(Path("/dev/full"))
    assert anchored.code(round=2) == "books_broken"
    assert {p.name for p in anchored.received.iterdir()} == before


def test_an_altered_chain_stops_an_agent_that_runs(site: Site) -> None:
    assert site.code() is None
    chain = site.home / "audit" / "chain.jsonl"
    lines = chain.read_bytes().splitlines(keepends=True)
    chain.write_bytes(b"".join(lines[:-1]))
    assert site.code(round=2) == "books_broken"
    assert site.executions() == 1


@pytest.mark.rule("33")
def test_a_refusal_is_written_down_and_its_texts_are_cut(site: Site) -> None:
    before = site.books.anchor().audit_length
    assert site.code(run_id="x" * 100_000) is not None
    assert site.books.anchor().audit_length == before + 1
    last = (site.home / "audit" / "chain.jsonl").read_text().splitlines()[-1]
    assert len(last) < 4000


def test_two_agents_on_one_home_keep_one_history(site: Site) -> None:
    """The administrator's commands open the same books while the agent runs."""
    books = open_books(load_agent_config(site.home, []))
    assert site.code() is None
    books.check(site.books.anchor())
    assert books.anchor() == site.books.anchor()
    books.close()


def test_a_head_that_could_not_be_written_once_is_made_good(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is there, its acknowledgement not: nothing left, and the next order goes on."""
    from site_agents.audit import chain

    plain, failures = chain.write_head, [OSError(5, "Input/output error")]

    def write_head(*arguments: object) -> None:
        if failures:
            raise failures.pop()
        plain(*arguments)

    monkeypatch.setattr(chain, "write_head", write_head)
    assert site.code() == "books_broken"
    assert list(site.received.iterdir()) == []
    assert site.code() is None
    assert site.executions() == 1
    site.restart()
    assert site.code(round=2) is None


def test_the_audit_names_the_lineage_that_paid(make_site: Callable[..., Site]) -> None:
    site = make_site(egress="every_round")
    site.answer(site.delivery())
    approvals = Approvals(site.home)
    approvals.decide(approvals.waiting()[0], approved=True, by="mia", reason="seen")
    site.write_policy(
        data={"cohort": DataRule(lineage="others", public_size=500, unit="row")},
        egress="every_round",
    )
    assert site.code() is None
    last = (site.home / "audit" / "chain.jsonl").read_text().splitlines()[-1]
    assert '"patients"' in last
    assert '"others"' not in last
