"""A ledger that is missing, cut short, rolled back, copied or edited is noticed, and said so."""

from __future__ import annotations

import os
import shutil
import sqlite3

import pytest
from ledger_parts import LINEAGE, admitted, charge, epsilon, make, make_used, update, work

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.plans import Anchor
from site_agents import ledger_place, local_disk
from site_agents.ledger import Ledger, LedgerError, WorkConflictError

FILES = ("ledger.sqlite", "ledger.key", "ledger.head")
PAGE = "docs/privacy.md"


def edit(home, statement, *values):
    database = sqlite3.connect(home / "ledger.sqlite")
    with database:
        database.execute(statement, values)
    database.close()


def refused(home, *said):
    before = {path.name: path.read_bytes() for path in home.iterdir() if "-" not in path.name}
    with pytest.raises(LedgerError) as caught:
        Ledger.open(home)
    for words in (str(home), *said):
        assert words in str(caught.value), caught.value
    after = {path.name: path.read_bytes() for path in home.iterdir() if "-" not in path.name}
    assert after == before, "what is refused is left as it was found"


def test_what_was_written_is_there_when_it_is_opened_again(tmp_path):
    make_used(tmp_path, rounds=3)
    ledger = Ledger.open(tmp_path)
    assert ledger.sequence == 2 + 1 + 3 * 2
    assert ledger.finished(work(2)) == update(work(2))
    assert ledger.finished(work(4)) is None
    assert ledger.budget.works[("lead", "run-1", 3, "train")].finished
    assert epsilon(ledger) > 0
    ledger.close()


def test_a_ledger_is_made_once_and_for_this_user_alone(tmp_path):
    make(tmp_path)
    with pytest.raises(LedgerError, match="exists already"):
        Ledger.create(tmp_path, {LINEAGE: 1e-5}, actor="eve")
    for name in FILES:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", FILES)
def test_missing(tmp_path, name):
    make_used(tmp_path)
    (tmp_path / name).unlink()
    refused(tmp_path, name, "missing", "site-agent init", PAGE)


def test_opening_makes_nothing(tmp_path):
    with pytest.raises(LedgerError, match="missing"):
        Ledger.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_cut_short(tmp_path, name, share):
    make_used(tmp_path, rounds=30)
    path = tmp_path / name
    os.truncate(path, int(path.stat().st_size * share))
    refused(tmp_path, PAGE)


def test_the_newest_entries_were_taken_away(tmp_path):
    make_used(tmp_path)
    edit(tmp_path, "DELETE FROM entry WHERE sequence > 5")
    refused(tmp_path, "rolled back or cut short", "entry 9")


@pytest.mark.rule("40")
def test_an_older_file_was_put_back(tmp_path):
    make_used(tmp_path)
    old = (tmp_path / "ledger.sqlite").read_bytes()
    ledger = Ledger.open(tmp_path)
    ledger.reserve(work(4), LINEAGE, charge())
    ledger.close()
    (tmp_path / "ledger.sqlite").write_bytes(old)  # in place: the same inode
    refused(tmp_path, "rolled back or cut short")


def test_a_whole_older_home_shows_by_an_anchor_kept_elsewhere(tmp_path):
    home = make_used(tmp_path)
    old = {name: (home / name).read_bytes() for name in FILES}
    ledger = Ledger.open(home)
    ledger.reserve(work(4), LINEAGE, charge())
    anchor = anchor_of(ledger)
    assert ledger.contradiction(anchor) is None
    ledger.close()
    for name, content in old.items():
        (home / name).write_bytes(content)
    ledger = Ledger.open(home)
    assert "rolled back" in ledger.contradiction(anchor)
    ledger.reserve(work(4, digest="other"), LINEAGE, charge())  # as long, but not the same
    assert "not the one" in ledger.contradiction(anchor)
    ledger.close()


def test_an_anchor_of_another_ledger_contradicts(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    one, two = (Ledger.open(tmp_path / name) for name in ("one", "two"))
    assert "another ledger" in two.contradiction(anchor_of(one))
    one.close()
    two.close()


def anchor_of(ledger):
    return Anchor(
        site="cesga",
        ledger=ledger.budget.identifier,
        ledger_sequence=ledger.sequence,
        ledger_head=ledger.head,
        audit_length=0,
        audit_head="",
    )


EDITS = {
    "a value": ("UPDATE entry SET body = replace(body, '\"steps\":1', '\"steps\":0')", "entry 3"),
    "a time": ("UPDATE entry SET at = at - 1 WHERE sequence = 4", "entry 4"),
    "a kind": ("UPDATE entry SET kind = 'WorkRefunded' WHERE sequence = 4", "entry 4"),
    "a head": ("UPDATE entry SET head = 'sha256:00' WHERE sequence = 4", "entry 4"),
    "one less": ("DELETE FROM entry WHERE sequence = 4", "entry 4"),
    "the first": ("DELETE FROM entry WHERE sequence = 1", "entry 1"),
    "renumbered": ("UPDATE entry SET sequence = sequence + 1000 WHERE sequence > 4", "entry 5"),
    "one more": (
        "INSERT INTO entry SELECT 10, at, kind, body, head FROM entry LIMIT 1",
        "entry 10",
    ),
}


@pytest.mark.parametrize("what", EDITS)
def test_edited(tmp_path, what):
    statement, where = EDITS[what]
    make_used(tmp_path)
    edit(tmp_path, statement)
    refused(tmp_path, where, PAGE)


def test_a_table_is_gone(tmp_path):
    make_used(tmp_path)
    edit(tmp_path, "DROP TABLE entry")
    refused(tmp_path, "its tables are not as they were made")


@pytest.mark.parametrize("name", FILES)
def test_overwritten_with_something_else(tmp_path, name):
    make_used(tmp_path)
    path = tmp_path / name
    path.write_bytes(b"x" * path.stat().st_size)
    refused(tmp_path, PAGE)


@pytest.mark.parametrize("slot", [0, 1])
def test_a_head_file_torn_in_one_slot_is_enough(tmp_path, slot):
    make_used(tmp_path)
    content = bytearray((tmp_path / "ledger.head").read_bytes())
    content[512 * slot : 512 * slot + 30] = b"\0" * 30
    (tmp_path / "ledger.head").write_bytes(content)
    Ledger.open(tmp_path).close()


def test_a_stored_divergence_that_was_edited_is_computed_again(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    spent = epsilon(ledger)
    ledger.close()
    edit(tmp_path, "UPDATE divergence SET rdp = zeroblob(length(rdp))")
    ledger = Ledger.open(tmp_path)
    assert epsilon(ledger) == spent
    ledger.close()


def test_a_divergence_kept_by_another_accountant_is_computed_again(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    spent = epsilon(ledger)
    ledger._file.keep("other orders", charge().cost, (0.0,) * 45)
    ledger.close()
    ledger = Ledger.open(tmp_path)
    assert epsilon(ledger) == spent
    ledger.close()


# ---- copies and moves --------------------------------------------------------------------------


def test_a_copy_is_refused_until_a_person_moves_it(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    make_used(home)
    shutil.copytree(home, tmp_path / "copy")
    refused(tmp_path / "copy", "second copy", "site-agent ledger move")
    Ledger.open(home).close()
    Ledger.move(tmp_path / "copy", actor="ada", reason="the disk was replaced")
    ledger = Ledger.open(tmp_path / "copy")
    assert ledger.recent(1)[0].kind == "Moved"
    assert epsilon(ledger) > 0
    ledger.close()


def test_a_folder_that_is_renamed_stays_the_same_ledger(tmp_path):
    (tmp_path / "home").mkdir()
    make_used(tmp_path / "home")
    (tmp_path / "home").rename(tmp_path / "elsewhere")
    Ledger.open(tmp_path / "elsewhere").close()


def test_another_host_is_refused(tmp_path, monkeypatch):
    make_used(tmp_path)
    other = tmp_path / "machine-id"
    other.write_text("another host\n")
    monkeypatch.setattr(ledger_place, "_MACHINE_ID", other)
    refused(tmp_path, "another host", "site-agent ledger move")


def test_a_host_without_machine_id_goes_by_its_name(tmp_path, monkeypatch):
    found = set()
    for content in (None, "", "some id"):
        path = tmp_path / "machine-id"
        if content is not None:
            path.write_text(content)
        monkeypatch.setattr(ledger_place, "_MACHINE_ID", path)
        found.add(ledger_place.host())
    assert len(found) == 2  # missing and empty are the same: the host's name


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_second_name_of_the_file_is_refused(tmp_path, link):
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    make_used(home)
    other.mkdir()
    for name in ("ledger.key", "ledger.head"):
        shutil.copy(home / name, other / name)
    link(home / "ledger.sqlite", other / "ledger.sqlite")
    refused(other, "one place")


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    make_used(tmp_path)
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / {tmp_path} rw - nfs4 server:/home rw\n")
    monkeypatch.setattr(local_disk, "MOUNTS", mounts)
    for attempt in (
        lambda: Ledger.open(tmp_path),
        lambda: Ledger.move(tmp_path, actor="ada", reason="x"),
        lambda: Ledger.create(tmp_path, {}, actor="ada"),
    ):
        with pytest.raises(UsageError, match=r"network file system \(nfs4\)"):
            attempt()


# ---- while it is open --------------------------------------------------------------------------


def test_removed_while_in_use(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    (tmp_path / "ledger.sqlite").unlink()
    for attempt in (ledger.refresh, lambda: ledger.reserve(work(4), LINEAGE, charge())):
        with pytest.raises(LedgerError, match="removed while it was in use"):
            attempt()
    ledger.close()


def test_replaced_while_in_use(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copy(tmp_path / "ledger.sqlite", copy)
    copy.replace(tmp_path / "ledger.sqlite")
    with pytest.raises(LedgerError, match="replaced while it was in use"):
        ledger.reserve(work(4), LINEAGE, charge())
    ledger.close()


def test_cut_back_while_in_use(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    spent = epsilon(ledger)
    edit(tmp_path, "DELETE FROM entry WHERE sequence > 6")
    with pytest.raises(LedgerError, match="altered or cut off while it was in use"):
        ledger.reserve(work(4), LINEAGE, charge())
    assert epsilon(ledger) == spent
    ledger.close()


def test_a_finished_update_that_was_edited_meanwhile_is_not_sent(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    edit(tmp_path, "UPDATE entry SET body = replace(body, '0.5', '0.7') WHERE sequence = 7")
    assert ledger.finished(work(1)) == update(work(1))
    with pytest.raises(LedgerError, match="entry 7"):
        ledger.finished(work(2))
    ledger.close()


# ---- one piece of work, one key ----------------------------------------------------------------


def test_another_order_for_a_begun_round_conflicts(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    with pytest.raises(WorkConflictError):
        ledger.finished(work(1, digest="other"))
    ledger.reserve(work(4), LINEAGE, charge())
    with pytest.raises(WorkConflictError):
        ledger.finished(work(4, digest="other"))
    with pytest.raises(LedgerError, match="another order"):
        ledger.reserve(work(4, digest="other"), LINEAGE, charge())
    ledger.refund(work(4))  # never begun: another order may take its place
    assert ledger.finished(work(4, digest="other")) is None
    ledger.reserve(work(4, digest="other"), LINEAGE, charge())
    ledger.close()


def test_what_an_entry_may_not_follow_changes_nothing(tmp_path):
    make_used(tmp_path)
    ledger = Ledger.open(tmp_path)
    before = (ledger.sequence, ledger.head, epsilon(ledger))
    for attempt in (
        lambda: ledger.admit(admitted()),
        lambda: ledger.admit(admitted("run-2", lineage="nobody")),
        lambda: ledger.reserve(work(1), LINEAGE, charge()),
        lambda: ledger.reserve(work(4, run="run-9"), LINEAGE, charge()),
        lambda: ledger.reserve(work(4), LINEAGE, charge(steps=0)),
        lambda: ledger.refund(work(3)),
        lambda: ledger.commit(work(4), update(work(4))),
        lambda: ledger.open_lineage(LINEAGE, 1e-5, actor="eve", reason="again"),
        lambda: ledger.open_lineage("new", 1.0, actor="eve", reason="no delta"),
    ):
        with pytest.raises(LedgerError, match="refuses"):
            attempt()
    assert (ledger.sequence, ledger.head, epsilon(ledger)) == before
    ledger.close()
    ledger = Ledger.open(tmp_path)
    assert (ledger.sequence, ledger.head, epsilon(ledger)) == before
    ledger.close()
