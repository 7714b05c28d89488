"""The coordinator's runs on disk: made whole, in their order, and what their files say."""

import json
import sqlite3
from contextlib import closing

import pytest

from fedfactory.contracts.errors import RefusedError, UnknownNameError
from fedfactory.coordinator.desk.watching import watch
from fedfactory.coordinator.run_facts import Taken
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.coordinator.running.run_files import SUMMARY
from fedfactory.coordinator.runs import REOPEN, STOP, SUBMISSION, Runs, StopWish, row_of, status_of
from fedfactory.coordinator.schedule import to_start
from fedfactory.lease import Lease, LeaseHeldError
from fedfactory.rounds.events import RunStarted, SiteConnected
from tests.run_events import made, sent
from tests.unit.coordinator_submissions import plan_of


def add(runs, run_id, **changes):
    taken = Taken(
        number=runs.next_number(),
        at=1000.0,
        operator="lead",
        plan=plan_of(run_id, **changes),
    )
    return runs.add(runs.staging(run_id), taken)


def end(run, status="completed"):
    (run.folder / SUMMARY).write_text(json.dumps({"status": status, "reason": "it did"}))


def test_runs_are_found_again_in_their_order(tmp_path):
    runs = Runs(tmp_path)
    for run_id in ("z", "a", "m"):
        add(runs, run_id)
    again = Runs(tmp_path)
    assert [run.run_id for run in again.all()] == ["z", "a", "m"]
    assert again.find("a").taken == runs.find("a").taken
    assert again.next_number() == 3
    with pytest.raises(UnknownNameError, match="known: a, m, z"):
        again.find("b")


def test_what_was_half_made_is_dropped_and_what_is_damaged_left_out(tmp_path, caplog):
    runs = Runs(tmp_path)
    runs.staging("half")
    (add(runs, "torn").folder / SUBMISSION).write_text("{")
    add(runs, "whole")
    assert [run.run_id for run in Runs(tmp_path).all()] == ["whole"]
    assert not list(tmp_path.glob(".*"))
    assert "torn is damaged and left out" in caplog.text


def test_a_folder_that_cannot_be_opened_is_logged_and_named(tmp_path, caplog):
    runs = Runs(tmp_path)
    bare = add(runs, "bare").folder
    (bare / SUBMISSION).unlink()
    add(runs, "whole")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "note.txt").write_text("not a run")
    again = Runs(tmp_path)
    (told,) = again.left_out()
    assert told in caplog.text
    assert told.startswith(
        "bare is damaged and left out: submission.json is missing; put runs/bare"
    )
    assert str(tmp_path) not in told
    with pytest.raises(RefusedError, match=r"submission\.json is missing"):
        again.find("bare")


def test_no_other_run_is_offered_for_one_that_is_not_there(tmp_path):
    runs = Runs(tmp_path)
    add(runs, "20261201-165205-5eb0")
    with pytest.raises(UnknownNameError) as found:
        runs.find("20261201-165205-5eb1")
    assert "did you mean" not in str(found.value)


def _finished(run, rounds=1):
    with Journal.open(run.folder / JOURNAL) as journal:
        journal.append([RunStarted(at=1.0, plan=run.taken.plan, connected=())])
        journal.append([made(number) for number in range(1, rounds + 1)])
    entries = [{"round": number} for number in range(1, rounds + 1)]
    summary = {"status": "completed", "reason": "all rounds", "rounds": entries}
    (run.folder / SUMMARY).write_text(json.dumps(summary))


def _cut(journal):
    journal.write_bytes(journal.read_bytes()[:5000])


def _garble(journal):
    with closing(sqlite3.connect(journal)) as database, database:
        database.execute("UPDATE events SET line = substr(line, 1, 20) WHERE number = 1")


def _shorten(journal):
    with closing(sqlite3.connect(journal)) as database, database:
        database.execute("DELETE FROM events WHERE number > 0")


def _empty(journal):
    journal.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _garble, _shorten, _empty])
def test_a_damaged_journal_is_named_in_the_list(tmp_path, damage):
    run = add(Runs(tmp_path), "one")
    _finished(run)
    assert row_of(Runs(tmp_path).find("one"), "completed", None).damage == ""
    damage(run.folder / JOURNAL)
    found = row_of(Runs(tmp_path).find("one"), "completed", None)
    assert "put runs/one/journal.sqlite back from a backup" in found.damage
    assert str(tmp_path) not in found.damage


def test_where_a_run_stands(tmp_path):
    run = add(Runs(tmp_path), "one")
    assert status_of(run, ()) == "queued"
    assert status_of(run, ("one",)) == "running"
    run.suspend("it died", 1.0)
    assert status_of(run, ()) == "suspended"
    run.let_go_on("lead")
    assert status_of(run, ()) == "queued"
    run.wish_stop(StopWish(reason="enough", after_round=False))
    end(run, "stopped")
    assert status_of(run, ()) == "stopped"
    run.let_go_on("lead")
    assert status_of(run, ("one",)) == "running"
    assert json.loads((run.folder / REOPEN).read_text()) == {"by": "lead"}
    assert not (run.folder / STOP).exists()


def test_runs_that_had_begun_go_before_those_that_wait(tmp_path):
    runs = Runs(tmp_path)
    for run_id in ("waits", "begun", "over", "suspended"):
        add(runs, run_id)
    with Journal.open(runs.find("begun").folder / JOURNAL):
        pass
    end(runs.find("over"))
    runs.find("suspended").suspend("it died", 1.0)
    assert [run.run_id for run in Runs(tmp_path).unfinished()] == ["begun", "waits"]


@pytest.mark.parametrize(
    ("waiting", "going", "at_once", "starting"),
    [
        ([("a", False), ("b", False)], [], 1, ["a"]),
        ([("a", False), ("b", False)], ["a"], 1, []),
        ([("a", False), ("b", False), ("c", False)], ["a"], 2, ["b"]),
        # One that is to stop only comes to end: it does not wait for a place.
        ([("a", False), ("b", False), ("c", True)], ["a"], 1, ["c"]),
        ([("c", True), ("b", False)], [], 1, ["c"]),
    ],
)
def test_which_runs_start(waiting, going, at_once, starting):
    assert to_start(waiting, going, at_once) == starting


def test_a_watch_gives_every_event_once_and_ends_with_the_summary(tmp_path):
    run = add(Runs(tmp_path), "seen")
    plan = run.taken.plan
    with Journal.open(run.folder / JOURNAL) as journal:
        journal.append(
            [
                RunStarted(
                    at=1.0,
                    plan=plan,
                    connected=("lumi",),
                )
            ]
        )
        seen = watch(run, 0, follow=True, status=lambda: status_of(run, ("seen",)))
        first = next(seen)
        assert (first.number, first.status) == (1, "running")
        assert first.event is not None
        journal.append([SiteConnected(at=2.0, site="cesga")])
        second = next(piece for piece in seen if piece.event is not None)
        assert second.number == 2
        end(run)
        *_, last = seen
    assert last.status == "completed"
    assert json.loads(last.summary) == {"status": "completed", "reason": "it did"}
    later = list(watch(run, 1, follow=False, status=lambda: "completed"))
    assert [piece.number for piece in later] == [2, 2]


def test_progress_is_what_the_run_itself_did(tmp_path):
    run = add(Runs(tmp_path), "going")
    plan = run.taken.plan
    with Journal.open(run.folder / JOURNAL) as journal:
        journal.append([RunStarted(at=1.0, plan=plan, connected=())])
        run.progress.update()
        steps = run.progress.steps
        journal.append([SiteConnected(at=2.0, site="cesga")])
        run.progress.update()
    assert (run.progress.steps, steps) == (1, 1)
    assert run.progress.last_at == 2.0


def test_orders_that_are_sent_again_after_each_death_are_no_progress(tmp_path):
    run = add(Runs(tmp_path / "runs"), "one")
    with Journal.open(run.folder / JOURNAL) as journal:
        steps = []
        orders = [(1, "train"), (1, "train"), (1, "evaluate"), (2, "train"), (1, "train")]
        for number, kind in orders:
            event = sent("cesga", "lumi", kind=kind, round=number)
            journal.append([event])
            run.progress.update()
            steps.append(run.progress.steps)
    assert steps == [1, 1, 2, 3, 3]


def test_an_async_runs_round_is_its_model_s_and_no_site_s_count_of_orders(tmp_path):
    run = add(Runs(tmp_path), "going", mode="async", quorum=1, buffer=2)
    with Journal.open(run.folder / JOURNAL) as journal:
        started = RunStarted(at=1.0, plan=run.taken.plan, connected=())
        journal.append([started, sent("cesga", round=2), made(1), sent("cesga", round=5)])
        run.progress.update()
    assert run.progress.round == 1


def test_one_daemon_to_a_home(tmp_path):
    told = r"process \d+ on .* stop it first"
    with Lease(tmp_path, "coordinator", "run"), pytest.raises(LeaseHeldError, match=told):
        Lease(tmp_path, "coordinator", "run")
    with Lease(tmp_path, "coordinator", "run"), Lease(tmp_path, "agent", "run"):
        pass  # of the one kind and of the other
