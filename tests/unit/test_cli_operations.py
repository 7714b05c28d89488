"""The operators' commands against a played desk behind the real services, in mutual TLS."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta

import pytest

from fedfactory.cli.main import main
from fedfactory.contracts.questions import SiteLogs
from fedfactory.identity.roles import Role
from fedfactory.rounds.log import decode_event
from fedfactory.wire.operations import Finding, Submitted
from tests.patience import HANG_S, until
from tests.unit.operator_desk import DAY_S, NOW, DeskServer, after, member, row
from tests.unit.operator_runs import MODEL, RUN_ID, SITES, events, lines

MODEL_FIELDS = {"run_id", "round", "kept", "file", "digest", "bytes"}
QUICK = ["task=echo", "task.megabytes=1", "rounds=2", "evaluate=false"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    served = DeskServer(tmp_path_factory.mktemp("desk"))
    served.person(Role.OPERATOR, "ana")
    served.person(Role.VIEWER, "vera")
    yield served
    served.stop()


@pytest.fixture
def desk(server, tmp_path, monkeypatch):
    """A fresh desk; commands run in an empty folder as the operator ana."""
    server.desk = type(server.desk)()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDFACTORY_OPERATOR", str(server.folder / "operator-ana"))
    return server.desk


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


# ---- lists --------------------------------------------------------------------------------------


def test_runs(desk, capsys):
    assert main(["runs", "--json"]) == 0
    rows = told(capsys)["runs"]
    assert [found["run_id"] for found in rows] == [RUN_ID, "20261120-090000-cd34"]
    assert set(rows[0]) == set(row().__dataclass_fields__)
    assert main(["runs", "-q", "--limit", "1"]) == 0
    assert capsys.readouterr().out == f"{RUN_ID}\n"
    assert main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2" in shown
    assert "20261120-090000-cd34 has failed: cesga is gone" in shown


def test_sites(desk, capsys):
    desk.members += [member("ana", role="operator"), member("aa", status="invited")]
    assert main(["sites", "--json"]) == 0
    found = told(capsys)
    assert found["consortium"] == "alliance"
    assert [m["name"] for m in found["members"]] == ["aa", "cesga", "lumi", "ana"]
    assert set(found["members"][0]) == set(member("x").__dataclass_fields__)
    assert main(["sites", "-q"]) == 0
    assert capsys.readouterr().out == "cesga\nlumi\n"
    assert main(["sites"]) == 0
    assert "site aa has not enrolled yet" in capsys.readouterr().out


def test_a_viewer_looks_and_does_no_more(server, desk, capsys):
    viewer = ["--as", str(server.folder / "viewer-vera")]
    assert main(["runs", "-q", *viewer]) == 0
    capsys.readouterr()
    assert main(["stop", "last", *viewer]) == 5
    assert capsys.readouterr().err == (
        "fedfactory: the coordinator refuses: a viewer may not do this\n"
    )
    assert main(["run", "rounds=1", "--detach", *viewer]) == 5
    shown = capsys.readouterr()
    assert shown.err == "fedfactory: vera is a viewer: only operators submit runs\n"
    assert desk.asked == []


# ---- watching -----------------------------------------------------------------------------------


def test_watch_json_is_a_line_per_event_then_the_summary(desk, capsys, tmp_path):
    assert main(["watch", "last", "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [decode_event(line) for line in shown[:-1]] == list(enumerate(events()))
    assert json.loads(shown[-1])["summary"]["status"] == "completed"
    folder = tmp_path / "runs" / RUN_ID
    assert (folder / "events.jsonl").read_text().splitlines() == lines()
    assert (folder / "model.safetensors").read_bytes() == MODEL


def test_watch_shows_the_rounds_and_results(desk, capsys):
    assert main(["watch", RUN_ID, "--out", "here"]) == 0
    shown = capsys.readouterr().out
    assert "round   1" in shown
    assert "lumi: the site's policy does not allow this task" in shown
    assert "here/model.safetensors" in shown
    assert main(["watch", RUN_ID, "--out", "here", "-q"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("status", "code"), [("failed", 3), ("stopped", 4)])
def test_watch_ends_with_the_runs_own_code(desk, status, code):
    desk.end = status
    assert main(["watch", "last", "-q"]) == code


def test_a_suspended_run_is_not_waited_for(desk, capsys):
    desk.ended, desk.status = False, "suspended"
    desk.rows[0] = row(status="suspended", reason="SuperLink died five times")
    assert main(["watch", "last", "-q"]) == 3
    assert capsys.readouterr().err == (
        f"fedfactory: the run {RUN_ID} is suspended: SuperLink died five times;"
        f" `fedfactory resume {RUN_ID}` lets it go on\n"
    )


def test_a_suspended_run_that_says_how_it_goes_on_says_it_once(desk, capsys):
    desk.ended, desk.status = False, "suspended"
    desk.rows[0] = row(status="suspended", reason=f"it died; `fedfactory resume {RUN_ID}` helps")
    assert main(["watch", "last", "-q"]) == 3
    assert capsys.readouterr().err.count("fedfactory resume") == 1


@pytest.mark.parametrize("command", ["explain", "watch"])
def test_an_event_that_is_none_is_the_journals_damage(desk, capsys, command):
    desk.lines = [*desk.lines[:2], desk.lines[2][:20]]
    assert main([command, "last"]) == 1
    shown = capsys.readouterr().err
    assert f"the coordinator's journal of {RUN_ID} is damaged" in shown
    assert "back from a backup" in shown


def test_damaged_runs_are_named(desk, capsys):
    desk.left_out = ("old is damaged and left out: submission.json is missing",)
    assert main(["runs"]) == 0
    assert desk.left_out[0] in capsys.readouterr().out
    assert main(["runs", "--json"]) == 0
    assert told(capsys)["left_out"] == list(desk.left_out)


def test_a_coordinator_that_is_restarted_is_followed_on(server, desk, capsys, tmp_path):
    desk.ended, whole = False, desk.lines
    desk.lines = whole[:5]

    def come_back():
        server.start()
        desk.lines = whole
        desk.ended = True

    timers = [after(0.5, server.stop), after(1.2, come_back)]
    try:
        assert main(["watch", "last"]) == 0
    finally:
        for timer in timers:
            timer.join()
    assert (tmp_path / "runs" / RUN_ID / "events.jsonl").read_text().splitlines() == whole
    assert "the coordinator cannot be reached; trying again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "connected", "said"),
    [
        ("running", False, "waiting for lumi to connect"),
        ("running", True, "the run is starting"),
        ("queued", True, "waiting for its turn"),
    ],
)
def test_what_a_run_waits_for_before_it_begins(desk, capsys, status, connected, said):
    desk.members = [member("cesga"), member("lumi", connected=connected)]
    desk.ended, desk.status, whole, desk.lines = False, status, desk.lines, []

    def begin():
        desk.lines, desk.ended = whole, True

    timer = after(0.5, begin)
    assert main(["watch", "last"]) == 0
    timer.join()
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["waiting for the coordinator ...", f"{said} ..."]
    assert shown[2].startswith("run ")


def test_ctrl_c_stops_watching_and_not_the_run(server, desk, tmp_path):
    desk.ended = False
    desk.lines = lines()[:4]
    watcher = subprocess.Popen(
        [sys.executable, "-m", "fedfactory.cli.main", "watch", "last"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FEDFACTORY_OPERATOR": str(server.folder / "operator-ana")},
    )
    try:
        kept = tmp_path / "runs" / RUN_ID / "events.jsonl"
        until(lambda: kept.exists() and len(kept.read_text().splitlines()) == 4, 30)
        watcher.send_signal(signal.SIGINT)
        _, errors = watcher.communicate(timeout=HANG_S)
    finally:
        watcher.kill()
        watcher.wait()
    assert watcher.returncode == 130, errors
    assert f"the run {RUN_ID} goes on: `fedfactory watch {RUN_ID}` follows it again" in errors
    assert "Traceback" not in errors
    assert desk.asked == []


# ---- one run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "mode"), [([], "after_round"), (["--now"], "now")])
def test_stop(desk, capsys, flags, mode):
    assert main(["stop", RUN_ID[:-2], *flags, "--json"]) == 0
    assert told(capsys) == {"run_id": RUN_ID, "told": f"the run {RUN_ID} stops"}
    assert desk.asked == [("stop", RUN_ID, mode)]


def test_what_the_coordinator_refuses_is_five(desk, capsys):
    assert main(["resume", "last"]) == 5
    assert capsys.readouterr().err == (
        "fedfactory: the coordinator refuses: the run is completed: only failed and stopped ones"
        " resume\n"
    )
    desk.rows[0] = row(status="failed")
    assert main(["resume", "last"]) == 0
    assert capsys.readouterr().out == f"the run {RUN_ID} goes on\n"


def test_a_run_that_is_not_there(desk, capsys):
    assert main(["stop", "2025"]) == 2
    assert "unknown run '2025'" in capsys.readouterr().err


def test_explain(desk, capsys):
    desk.ended = False  # of a run that goes on: what there is now
    assert main(["explain", "last", "--json"]) == 0
    found = told(capsys)
    assert {(one["round"], one["site"], one["contributed"]) for one in found["explained"]} == {
        (1, "lumi", False),
        (2, "lumi", False),
    }
    assert main(["explain", "last", "--site", "lumi", "--round", "2"]) == 0
    shown = capsys.readouterr().out
    assert "lumi, round 2: refused by policy_task" in shown
    assert "1970-01-01 00:17:02 UTC: ReplyRefused train lumi policy_task" in shown
    assert main(["explain", "last", "--site", "cesga", "-q"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("cesga, round 1-2: contributed: ")
    assert main(["explain", "last", "--site", "nobody"]) == 2
    capsys.readouterr()
    assert main(["explain", "last", "--round", "9"]) == 2
    assert "has no round 9: rounds that have begun: 1 to 2" in capsys.readouterr().err


def test_explain_does_not_praise_a_run_that_has_not_begun(desk, capsys):
    desk.ended, desk.lines = False, []
    desk.rows[0] = replace(desk.rows[0], status="queued", reason="number 1 in the queue")
    assert main(["explain", "last"]) == 0
    assert "is queued (number 1 in the queue): no round has begun" in capsys.readouterr().out
    assert main(["explain", "last", "--round", "1"]) == 2
    assert "no round has begun" in capsys.readouterr().err


def test_names_are_checked_before_anybody_is_asked(desk, capsys, tmp_path):
    assert main(["logs", "last", "nobody"]) == 2
    assert "unknown site of this run 'nobody'" in capsys.readouterr().err
    assert main(["invite", "nobodys-machine"]) == 2
    assert "unknown site 'nobodys-machine'" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.invitation"))


def test_logs(desk, capsys):
    assert main(["logs", "last", "cesga"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["WHEN", "ROUND", "WORK", "OUTCOME", "SECONDS"]
    assert shown[1].split()[-4:] == ["1", "train", "update", "2.0"]
    desk.logs_given = SiteLogs(status="withheld", lines=())
    assert main(["logs", "last", "cesga", "--json"]) == 5
    shown = capsys.readouterr()
    assert json.loads(shown.out)["status"] == "withheld"
    assert "cesga lets nothing out of its record" in shown.err
    desk.logs_given = None
    assert main(["logs", "last", "cesga"]) == 5
    assert "cesga did not answer" in capsys.readouterr().err


def test_model_get(desk, capsys, tmp_path):
    assert main(["model", "get", "last", "--json"]) == 0
    found = told(capsys)
    assert set(found) == MODEL_FIELDS
    assert (tmp_path / f"{RUN_ID}.safetensors").read_bytes() == MODEL
    assert main(["model", "get", "last", "--round", "2", "--out", "two", "-q"]) == 0
    assert capsys.readouterr().out == "two\n"
    assert main(["model", "get", "last", "--round", "7"]) == 2
    assert "no model of round 7; rounds that are kept: 1, 2" in capsys.readouterr().err
    for nowhere in (".", "no/such"):
        assert main(["model", "get", "last", "--out", nowhere]) == 2
        assert "cannot be written: --out wants a file" in capsys.readouterr().err


def test_a_model_that_arrives_altered_is_never_there(desk, capsys, tmp_path, monkeypatch):
    from fedfactory.wire.rpc import transfers

    monkeypatch.setattr(transfers, "FIRST_PAUSE_S", 0.001)
    desk.files[desk.model.digest] = b"another model!!!"
    assert main(["model", "get", "last", "--out", "model"]) == 1
    assert "altered" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


# ---- members ------------------------------------------------------------------------------------


def test_invite_writes_a_secret_once(desk, capsys, tmp_path):
    assert main(["invite", "lumi", "--days", "2", "--json"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["expires_at"] == NOW + 2 * DAY_S
    written = tmp_path / "lumi.invitation"
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    token = json.loads(written.read_text())["token"]
    assert token not in shown
    assert main(["invite", "lumi"]) == 2
    assert "is there already" in capsys.readouterr().err


def test_invite_asks_for_nothing_that_it_cannot_write_down(desk, capsys):
    assert main(["invite", "nobodys-machine", "--role", "viewer", "--out", "no/such.json"]) == 2
    assert "no folder that can be written to" in capsys.readouterr().err
    assert not any("invite" in map(str, asked) for asked in desk.asked)


def test_revoke_wants_a_reason(desk, capsys):
    assert main(["revoke", "lumi"]) == 2
    assert "--reason" in capsys.readouterr().err
    assert main(["revoke", "lumi", "--reason", "the pilot is over"]) == 0
    assert desk.asked == [("revoke", "site", "lumi", "the pilot is over")]
    assert capsys.readouterr().out == "site 'lumi' is cut off\n"


# ---- run ----------------------------------------------------------------------------------------


def test_run_detached_is_signed_and_uploaded(desk, capsys):
    assert main(["run", *QUICK, "--detach", "--json"]) == 0
    found = told(capsys)
    (plan,) = desk.submitted
    assert found == {"run_id": plan.terms.run_id, "reason": "", "findings": []}
    assert plan.terms.sites == SITES
    assert plan.terms.coordinator == "alliance"
    assert plan.terms.not_after > time.time()
    assert plan.terms.initial.digest in desk.files
    assert len(desk.files[plan.terms.initial.digest]) == plan.terms.initial.bytes


def test_run_follows_to_the_end(desk, capsys, tmp_path):
    assert main(["run", *QUICK, "--sites", "cesga", "--out", "mine"]) == 0
    (plan,) = desk.submitted
    assert plan.terms.sites == ("cesga",)
    assert (tmp_path / "mine" / "config.yaml").read_text().startswith("task:")
    shown_config = (tmp_path / "mine" / "config.yaml").read_text()
    assert "federation:\n  sites:\n  - cesga\n" in shown_config
    assert "partition" not in shown_config
    assert (tmp_path / "mine" / "summary.json").exists()
    assert f"run {plan.terms.run_id}" in capsys.readouterr().out


def test_a_followed_run_as_json_lines(desk, capsys):
    finding = Finding(site="lumi", code="offline", sentence="not connected")
    real = desk.submit

    def submit(peer, plan):
        return replace(real(peer, plan), findings=(finding,))

    desk.submit = submit
    assert main(["run", *QUICK, "--json"]) == 0
    first, *rest, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["run_id"] == desk.submitted[0].terms.run_id
    assert first["findings"][0]["sentence"] == "not connected"
    assert [line["seq"] for line in rest] == list(range(len(events())))
    assert last["summary"]["run_id"] == first["run_id"]


def test_a_folder_that_holds_a_run_is_found_before_anything_is_sent(desk, capsys, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "events.jsonl").write_text("")
    assert main(["run", *QUICK, "--out", "mine"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert desk.submitted == []


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_a_person_is_asked_before_it_is_signed(desk, capsys, monkeypatch, answer, code):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["run", *QUICK, "max_update_norm_l2=50", "--detach"]) == code
    assert len(desk.submitted) == (code == 0)
    asked = capsys.readouterr()
    assert "sites     cesga, lumi (quorum 2)" in asked.err
    assert "sign and submit? [y/N]" in asked.err
    assert re.search(r"model     sha256:[0-9a-f]{64}, \d+ bytes", asked.err)
    assert "lr        at most 0.1" in asked.err
    assert "strategy  fedavg" in asked.err
    assert "updates   of norm 50 at most" in asked.err
    assert len(desk.files) == (2 if code == 0 else 1)  # nothing is sent before somebody agreed
    assert main(["run", *QUICK, "--detach", "--yes"]) == 0


def test_a_strategy_class_that_only_some_coordinators_make_is_sent(desk, capsys):
    target = "flwr.serverapp.strategy.fedavg.FedAvg"  # importable, and no name that is published
    words = ("strategy=custom", f"strategy._target_={target}")
    assert main(["run", *QUICK, *words, "--detach", "-q"]) == 0
    assert desk.submitted[0].terms.strategy_options["_target_"] == target


def test_run_starts_from_another_runs_model(desk):
    assert main(["run", *QUICK, "model=last:2", "--detach", "-q"]) == 0
    assert desk.submitted[0].terms.initial == desk.model
    assert main(["run", *QUICK, "model=last:1", "--detach", "-q"]) == 2
    assert main(["run", *QUICK, "model=no/such/file", "--detach", "-q"]) == 2


def test_a_run_that_is_not_taken_says_why_in_sentences(desk, capsys):
    finding = Finding(site="lumi", code="offline", sentence="not connected since 09:12 UTC")
    desk.answer = Submitted(run_id=None, reason="1 of 2 sites could begin", findings=(finding,))
    assert main(["run", *QUICK]) == 5
    shown = capsys.readouterr()
    assert "lumi cannot take part now: not connected since 09:12 UTC (offline)" in shown.err
    assert "the run was not taken: 1 of 2 sites could begin" in shown.err
    assert main(["run", *QUICK, "--json"]) == 5
    assert told(capsys)["findings"][0]["code"] == "offline"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--sites", "nobody"], "unknown site 'nobody'"),
        (["--sites", "cesga", "federation=demo"], "give one of them"),
        (["baselines=true"], "`fedfactory local` alone"),
        (["partition=iid"], "partition is for `fedfactory local` alone"),
        (["partition.alpha=0.1"], "partition is for `fedfactory local` alone"),
        (["executor=local"], "executor is for `fedfactory local` alone"),
        (["federation=numbered"], "federation=numbered is for `fedfactory local` alone"),
        (["federation=numbered", "federation.count=1"], "federation=numbered is for"),
        (["rounds=many"], "rounds"),
        (["strategy=custom", "strategy._target_=os.system"], "strategy._target_"),
    ],
)
def test_a_run_that_cannot_be_is_refused_here(desk, capsys, words, sentence):
    assert main(["run", *QUICK[:2], *words, "--detach"]) == 2
    assert sentence in capsys.readouterr().err
    assert desk.submitted == []


# ---- the way there ------------------------------------------------------------------------------


def test_nobody_there_is_six(server, desk, capsys, tmp_path):
    server.stop()
    try:
        assert main(["runs"]) == 6
    finally:
        server.start()
    assert "cannot be reached" in capsys.readouterr().err


def test_a_certificate_that_ends_soon_is_renewed_on_the_way(server, desk, monkeypatch, capsys):
    folder = server.person(Role.OPERATOR, "otto")
    certificate = folder / "identity" / "certificate.pem"
    server.enrol(Role.OPERATOR, "otto", lifetime=timedelta(seconds=30))
    short = certificate.read_bytes()
    assert main(["runs", "-q", "--as", str(folder)]) == 0
    renewed = certificate.read_bytes()
    assert renewed != short
    assert main(["runs", "-q", "--as", str(folder)]) == 0
    assert certificate.read_bytes() == renewed
    assert capsys.readouterr().err == ""


def test_no_folder(tmp_path, capsys):
    assert main(["runs", "--as", str(tmp_path / "none")]) == 2
    assert "fedfactory enrol" in capsys.readouterr().err


def test_another_consortiums_coordinator_is_not_believed(desk, server, tmp_path, capsys):
    other = DeskServer(tmp_path / "other")
    folder = other.person(Role.OPERATOR, "eve")
    membership = json.loads((folder / "consortium.json").read_text())
    (folder / "consortium.json").write_text(json.dumps({**membership, "gateway": server.address}))
    other.stop()
    assert main(["runs", "--as", str(folder)]) == 1
    assert capsys.readouterr().out == ""
