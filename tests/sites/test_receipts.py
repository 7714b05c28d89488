"""A coordinator that sent receipts of a site's books and no longer does is given no new work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedfactory.contracts.plans import Anchor
from fedfactory.contracts.updates import Reply
from site_agents.cli.main import main
from tests.sites.asking import about_plan, questions_of
from tests.sites.rig import HUB, Site


@pytest.fixture
def known(site: Site) -> Site:
    """A site whose coordinator sent a receipt with its second order."""
    assert site.code() is None
    assert site.code(round=2, receipt=site.books.anchor()) is None
    return site


@pytest.mark.rule("41")
def test_new_work_without_the_receipt_that_there_was_is_refused_and_costs_nothing(
    known: Site,
) -> None:
    spent, executions = known.steps_spent(), known.executions()
    assert known.code(round=3) == "no_receipt"
    known.restart()
    assert known.code(round=3) == "no_receipt"
    assert known.code(known.coordinator.terms(run_id="run-2", nonce="n-2")) == "no_receipt"
    assert (known.steps_spent(), known.executions()) == (spent, executions)
    assert known.code(round=3, receipt=known.books.anchor()) is None


def test_what_is_done_is_sent_again_without_one(known: Site) -> None:
    """It waited for a person, say, while a later order brought the first receipt."""
    executions = known.executions()
    assert known.code() is None
    assert known.executions() == executions


def test_a_coordinator_that_never_sent_one_needs_none(site: Site) -> None:
    assert [site.code(round=number) for number in (1, 2, 3)] == [None] * 3


def test_the_question_before_a_run_is_answered_as_its_first_order_would_be(known: Site) -> None:
    answer = questions_of(known).answer(about_plan(known))
    assert answer is not None
    assert answer.preflight is not None
    assert answer.preflight.code == "no_receipt"
    answer = questions_of(known).answer(about_plan(known, receipt=known.books.anchor()))
    assert answer is not None
    assert answer.preflight is not None
    assert answer.preflight.code == ""


def test_the_administrator_accepts_it_and_the_books_say_so(
    known: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDFACTORY_HOME", str(known.home))
    accept = ["ledger", "accept-coordinator", HUB, "--reason", "its disk was lost"]
    assert main(accept) == 0
    assert known.code(round=3) is None
    chain = (known.home / "audit" / "chain.jsonl").read_text()
    entries = [json.loads(line)["entry"] for line in chain.splitlines()]
    (entry,) = [entry for entry in entries if entry["event"] == "receipt_waived"]
    assert (entry["coordinator"], entry["reason"]) == (HUB, "its disk was lost")
    # It holds until the coordinator sends one again.
    assert known.code(round=4, receipt=known.books.anchor()) is None
    assert known.code(round=5) == "no_receipt"
    assert main(["ledger", "accept-coordinator", "other", "--reason", "x"]) == 2
    assert "known: hub" in capsys.readouterr().err


def put_back(site: Site, folder: Path, name: str) -> None:
    """Put a copy's content back into the very files (a ledger knows its inode)."""
    for old in (folder / name).rglob("*") if (folder / name).is_dir() else [folder / name]:
        path = site.home / old.relative_to(folder)
        with path.open("r+b") as file:
            file.truncate(0)
            file.write(old.read_bytes())


@pytest.mark.parametrize("what", ["ledger", "audit"])
def test_one_of_the_books_put_back_needs_no_coordinator_to_be_found_out(
    site: Site, tmp_path: Path, what: str
) -> None:
    """Before the first receipt came: the ledger that is put back knows of none."""
    assert site.code() is None
    site.close()
    copy = tmp_path / "copy"
    shutil.copytree(site.home, copy)
    site.open()
    assert site.code(round=2, receipt=site.books.anchor()) is None
    assert site.code(round=3, receipt=site.books.anchor()) is None
    site.close()
    for name in sorted(path.name for path in copy.iterdir() if path.name.startswith(what)):
        put_back(site, copy, name)
    site.open()
    assert site.code(round=4) == "books_broken"


@pytest.mark.parametrize("damage", ["{", '{"newest": {}, "more": 1}'])
def test_damaged_receipts_are_books_that_do_not_hold(known: Site, damage: str) -> None:
    (known.home / "receipts.json").write_text(damage)
    assert known.code(round=3, receipt=known.books.anchor()) == "books_broken"


def test_receipts_that_others_could_write_are_books_that_do_not_hold(known: Site) -> None:
    (known.home / "receipts.json").chmod(0o606)
    assert known.code(round=3, receipt=known.books.anchor()) == "books_broken"


def test_an_older_receipt_takes_no_newer_one_away(known: Site) -> None:
    old = known.books.anchor()
    assert known.code(round=3, receipt=known.books.anchor()) is None
    assert known.code(round=4, receipt=known.books.anchor()) is None
    newest = (known.home / "receipts.json").read_bytes()
    assert known.code(round=5, receipt=old) is None
    assert (known.home / "receipts.json").read_bytes() == newest


def test_a_rolled_back_site_is_found_out_by_the_receipt_that_it_insists_on(known: Site) -> None:
    later = known.ask(round=3, receipt=known.books.anchor()).anchor
    assert isinstance(later, Anchor)
    ahead = Anchor(
        site=later.site,
        ledger=later.ledger,
        ledger_sequence=later.ledger_sequence + 5,
        ledger_head=later.ledger_head,
        audit_length=later.audit_length,
        audit_head=later.audit_head,
    )
    assert known.code(round=4, receipt=ahead) == "books_broken"
    reply = known.ask(round=4)
    assert isinstance(reply, Reply)
    assert reply.refusal is not None
    assert reply.refusal.code == "no_receipt"
