"""The coordinator's daemon: what is killed comes back, what is asked is checked, runs share it."""

import os
import subprocess
import sys
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.versions import own_version
from fedfactory.identity.enrolment import load_identity
from fedfactory.identity.signing import Signer, new_signing_key
from fedfactory.wire.enrolling import enrol_identity
from fedfactory.wire.membership import MembersRequest, RevokeRequest
from fedfactory.wire.operations import (
    ModelRequest,
    ResumeRequest,
    StopRequest,
    WatchRequest,
)
from fedfactory.wire.rpc.methods import GATEWAY
from fedfactory.wire.rpc.service import VERSION
from fedfactory.wire.rpc.transfers import Transfers
from fedfactory.wire.tls import open_channel
from tests.federation.coordinator_rig import Rig, StandIn
from tests.owned_processes import owned
from tests.patience import HANG_S
from tests.unit.coordinator_submissions import changed, signed_by

pytestmark = pytest.mark.federation
SITES = ("cesga", "lumi")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    yield from _running(tmp_path_factory.mktemp("shared"), "runs_at_once=3")


@pytest.fixture
def rig(shared):
    shared.until(lambda: set(SITES) <= shared.connected())  # one test may have restarted it
    yield shared
    for site in shared.sites.values():
        site.code = ""
        site.work.set()


@pytest.fixture
def narrow(tmp_path):
    """A coordinator with one place for a run, and two that may wait."""
    yield from _running(tmp_path, "runs_at_once=1", "queue=2")


def _running(folder, *words):
    found = Rig(folder)
    found.start(*words)
    try:
        found.settle(*SITES)
        yield found
    finally:
        left = found.close()
    assert left == []


def hold(rig):
    """Let the sites keep the next orders they get, so that a run stays under way."""
    for site in rig.sites.values():
        site.work.clear()


def release(rig):
    for site in rig.sites.values():
        site.work.set()


def begin(rig, run_id, **words):
    """Submit a run and wait until both sites hold its first order."""
    hold(rig)
    began = time.monotonic()
    assert rig.submit(run_id, **words).run_id == run_id
    rig.until(lambda: len(rig.orders_since(began)) >= len(SITES))


def complete(rig, run_id):
    release(rig)
    rig.until(lambda: rig.ended(run_id))
    assert rig.summary(run_id)["status"] == "completed"


# ---- a run, and what operators see of it ------------------------------------------------------


def test_the_health_service_answers_members(rig):
    with open_channel(rig.address, rig.lead.identity) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        reply = health.Check(health_pb2.HealthCheckRequest(service=""), timeout=HANG_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_a_run_is_taken_followed_and_its_model_fetched(rig, tmp_path):
    assert rig.submit("followed").run_id == "followed"
    with rig.as_lead() as lead:
        pieces = list(
            lead.watch(WatchRequest(run_id="followed", after=0, follow=True), timeout=HANG_S)
        )
        events = [piece.event for piece in pieces if piece.event is not None]
        assert '"RunStarted"' in events[0]
        assert pieces[-1].summary is not None
        assert pieces[-1].status == "completed"
        # From any number on, also when it is over.
        later = list(
            lead.watch(WatchRequest(run_id="followed", after=3, follow=True), timeout=HANG_S)
        )
        assert [piece.event for piece in later if piece.event is not None] == events[3:]
        found = lead.find_model(ModelRequest(run_id="followed", round=None), timeout=HANG_S)
        assert found.round == 2
        assert found.model is not None
        assert set(found.kept) >= {1, 2}
        pruned = lead.find_model(ModelRequest(run_id="followed", round=9), timeout=HANG_S)
        assert (pruned.model, pruned.kept) == (None, found.kept)
    with open_channel(rig.address, rig.lead.identity) as channel:
        Transfers(channel).download(found.model, tmp_path / "model.safetensors")
    assert rig.summary("followed")["model"]["digest"] == found.model.digest


def test_a_run_that_is_not_there_is_said_to_be_none(rig):
    with rig.as_lead() as lead:
        for ask in (
            lambda: lead.stop(StopRequest(run_id="nowhere", mode="now"), timeout=HANG_S),
            lambda: lead.resume(ResumeRequest(run_id="nowhere"), timeout=HANG_S),
            lambda: list(
                lead.watch(WatchRequest(run_id="nowhere", after=0, follow=True), timeout=HANG_S)
            ),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                ask()
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_two_runs_go_side_by_side(rig):
    """While the sites hold the first run's orders, the second one's come to them too."""
    hold(rig)
    began = time.monotonic()
    for run_id in ("left", "right"):
        assert rig.submit(run_id).run_id == run_id
    rig.until(lambda: {"left", "right"} <= _going(rig, began))
    assert {rig.row("left").status, rig.row("right").status} == {"running"}
    for run_id in ("left", "right"):
        complete(rig, run_id)


def _going(rig, began):
    """Runs that have sent orders since a moment, by the coordinator's own journals."""
    del began
    return {
        run_id
        for run_id in ("left", "right")
        if rig.row(run_id).status == "running" and rig.row(run_id).round == 1
    }


def test_a_stopped_run_ends_and_can_be_resumed(rig):
    begin(rig, "halted")
    with rig.as_lead() as lead:
        lead.stop(StopRequest(run_id="halted", mode="now"), timeout=HANG_S)
        rig.until(lambda: rig.row("halted").status == "stopped")
        with pytest.raises(grpc.RpcError) as refused:
            lead.stop(StopRequest(run_id="halted", mode="now"), timeout=HANG_S)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        lead.resume(ResumeRequest(run_id="halted"), timeout=HANG_S)
    release(rig)
    rig.until(lambda: rig.row("halted").status == "completed")


# ---- what is killed comes back ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["run", "coordinator"])
def test_whatever_is_killed_the_run_goes_on(rig, name):
    run_id = f"killed-{name}"
    begin(rig, run_id)
    part = f"run {run_id}" if name == "run" else name
    before = rig.told()["pids"]
    rig.kill(part)
    began = time.monotonic()
    if name == "coordinator":
        rig.start("runs_at_once=3")
    rig.until(lambda: len(rig.orders_since(began)) >= 1, seconds=60)
    took = rig.orders_since(began)[0] - began
    print(f"{name}: {took:.2f} s from kill -9 to the next order")
    complete(rig, run_id)
    assert rig.told()["pids"].get(part) != before[part]


def test_a_run_s_process_that_is_frozen_while_the_coordinator_dies_is_no_second_writer(rig):
    begin(rig, "frozen")
    frozen = rig.run_processes()
    assert frozen
    for process in frozen:
        process.suspend()
    rig.kill("coordinator")
    rig.start("runs_at_once=3")
    rig.until(lambda: not set(frozen) & set(owned(rig.folder)))
    complete(rig, "frozen")


def test_a_second_coordinator_of_the_home_is_refused(rig):
    found = subprocess.run(
        [sys.executable, "-m", "fedfactory.cli.main", "coordinator", "--home", str(rig.home)],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert found.returncode == 1
    assert f"process {rig.process.pid}" in found.stderr
    assert "stop it first" in found.stderr


def test_a_run_whose_folder_is_damaged_waits_for_its_operator_and_the_others_go_on(rig):
    pid = rig.told()["pids"]["coordinator"]
    begin(rig, "torn")
    begin(rig, "beside")
    (rig.home / "runs" / "torn" / "stop.json").write_text("[]")
    rig.until(lambda: rig.row("torn").status == "suspended")
    assert "runs/torn/stop.json" in rig.row("torn").reason
    complete(rig, "beside")
    with rig.as_lead() as lead:
        lead.resume(ResumeRequest(run_id="torn"), timeout=HANG_S)
    complete(rig, "torn")
    assert rig.told()["pids"]["coordinator"] == pid


def test_a_run_that_dies_again_and_again_waits_for_its_operator(rig):
    begin(rig, "dying")

    def kill_until_suspended() -> bool:
        for process in rig.run_processes():
            process.kill()
        return rig.row("dying").status == "suspended"

    rig.until(kill_until_suspended, seconds=90)
    assert "without getting on" in rig.row("dying").reason
    with rig.as_lead() as lead:
        lead.resume(ResumeRequest(run_id="dying"), timeout=HANG_S)
    complete(rig, "dying")


def test_a_disk_that_does_not_take_who_runs_ends_no_daemon(rig):
    begin(rig, "unannounced")
    told, (before,) = rig.home / "gateway.json", rig.run_processes()
    coordinator = rig.told()["pids"]["coordinator"]
    told.unlink()
    told.mkdir()
    try:
        before.kill()
        rig.until(lambda: "gateway.json cannot be written" in rig.log())
    finally:
        told.rmdir()
    rig.until(lambda: rig.told().get("pids", {}).get("run unannounced") not in (None, before.pid))
    assert rig.told()["pids"]["coordinator"] == coordinator
    complete(rig, "unannounced")


@pytest.mark.slow
def test_a_run_s_process_that_is_frozen_is_replaced(rig):
    begin(rig, "stood-still")
    for process in rig.run_processes():
        process.suspend()
    release(rig)
    rig.until(lambda: rig.ended("stood-still"), seconds=90)
    assert rig.summary("stood-still")["status"] == "completed"


# ---- what is not taken ------------------------------------------------------------------------


def reason(rig, plan):
    with rig.as_lead() as lead:
        told = lead.submit(plan, timeout=HANG_S)
    assert told.run_id is None
    assert not (rig.home / "runs" / plan.terms.run_id).exists()
    return told.reason


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "fedfactory.coordinator.run_process.RunProcess",
        "flwr.serverapp.strategy.strategy.Path",
        "flwr.serverapp.Grid",
        "flwr.serverapp.strategy.FedAvg.start",
        "flwr.serverapp.strategy.DifferentialPrivacyServerSideFixedClipping",
        "flwr.serverapp.strategy...os.system",
        "",
    ],
)
def test_a_target_that_is_no_installed_strategy_is_refused(rig, target):
    found = rig.submission("attack", strategy="custom", options={"_target_": target})
    assert "_target_" in reason(rig, found)


def test_a_flower_strategy_is_taken_by_its_name(rig):
    options = {"_target_": "flwr.serverapp.strategy.FedAvg"}
    found = rig.submission("flowers", strategy="custom", options=options)
    with rig.as_lead() as lead:
        assert lead.submit(found, timeout=HANG_S).run_id == "flowers"
    complete(rig, "flowers")


def test_a_plan_counts_once_also_after_a_restart(rig):
    found = rig.submission("once")
    with rig.as_lead() as lead:
        assert lead.submit(found, timeout=HANG_S).run_id == "once"
    complete(rig, "once")
    terms = changed(found.terms, run_id="twice")
    renamed = changed(found, signed=signed_by(terms, rig.lead.signer))
    for _ in range(2):
        with rig.as_lead() as lead:
            assert "was submitted before" in lead.submit(found, timeout=HANG_S).reason
        assert "nonce" in reason(rig, renamed)
        assert rig.stop() == 0
        rig.start("runs_at_once=3")


def test_another_s_signature_is_not_the_caller_s(rig):
    found = rig.submission("forged")
    stranger = Signer(new_signing_key())
    forged = changed(found, signed=signed_by(found.terms, stranger))
    with rig.as_lead() as lead, pytest.raises(grpc.RpcError) as refused:
        lead.submit(forged, timeout=HANG_S)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_model_that_is_not_here_is_asked_for(rig):
    missing = BlobRef(digest="sha256:" + "0" * 64, bytes=10)
    terms = rig.submission("modelless").terms
    terms = changed(terms, initial=missing, max_model_bytes=20)
    found = changed(rig.submission("modelless"), signed=signed_by(terms, rig.lead.signer))
    assert "has not been uploaded" in reason(rig, found)


def test_sites_that_are_unfit_are_named_and_the_run_begins_without_them_if_it_can(rig):
    rig.sites["lumi"].code = "budget_exhausted"
    found = rig.submission("unfit", sites=("cesga", "lumi", "vega"), quorum=2)
    with rig.as_lead() as lead:
        told = lead.submit(found, timeout=HANG_S)
    assert told.run_id is None
    assert "quorum is 2" in told.reason
    assert {f.site: f.code for f in told.findings} == {
        "lumi": "budget_exhausted",
        "vega": "not_enrolled",
    }
    with rig.as_lead() as lead:
        told = lead.submit(
            rig.submission("fewer", sites=("cesga", "lumi", "vega"), quorum=1), timeout=HANG_S
        )
        assert told.run_id == "fewer"
        assert len(told.findings) == 2
        lead.stop(StopRequest(run_id="fewer", mode="now"), timeout=HANG_S)
    rig.until(lambda: rig.ended("fewer"))


def test_a_site_whose_version_does_not_fit_is_not_merely_offline(rig):
    """An agent two minor versions on, or left behind, calls again and again: its lead is told."""
    here = rig.sites["lumi"]
    here.close()
    rig.until(lambda: "lumi" not in rig.connected())
    major, minor, *_ = own_version().split(".")
    far = f"{major}.{int(minor) + 2}.0"
    with open_channel(rig.address, load_identity(here.folder / "identity")) as channel:
        call = channel.unary_stream(f"/{GATEWAY}/Listen")(b"", metadata=((VERSION, far),))
        with pytest.raises(grpc.RpcError, match="do not work together"):
            next(call)
    found = rig.submission("skewed", quorum=2)
    with rig.as_lead() as lead:
        told = lead.submit(found, timeout=HANG_S)
        members = lead.list_members(MembersRequest(), timeout=HANG_S).members
    words = f"its fedfactory {far} is too far from the coordinator's {own_version()}"
    (finding,) = told.findings
    assert (finding.site, finding.code) == ("lumi", "offline")
    assert words in finding.sentence
    (lumi,) = (member for member in members if member.name == "lumi")
    assert words in lumi.reason
    assert lumi.version == far
    rig.sites["lumi"] = StandIn(here.folder, rig)
    rig.until(lambda: "lumi" in rig.connected())
    with rig.as_lead() as lead:
        members = lead.list_members(MembersRequest(), timeout=HANG_S).members
    assert not any(member.reason for member in members)


def test_runs_wait_in_their_order_and_the_queue_has_an_end(narrow):
    begin(narrow, "first")
    for run_id in ("second", "third"):
        assert narrow.submit(run_id).run_id == run_id
    assert narrow.row("second").status == "queued"
    assert narrow.row("third").reason == "number 2 in the queue"
    assert "the queue holds 2" in narrow.submit("fourth").reason
    narrow.kill("coordinator")
    narrow.start("runs_at_once=1", "queue=2")
    narrow.until(lambda: narrow.row("first").status == "running")
    assert [narrow.row(run_id).status for run_id in ("second", "third")] == ["queued", "queued"]
    with narrow.as_lead() as lead:  # one that has no round under way makes none in order to stop
        lead.stop(StopRequest(run_id="third", mode="after_round"), timeout=HANG_S)
    narrow.until(lambda: narrow.ended("third"))
    assert (narrow.summary("third")["status"], narrow.row("third").round) == ("stopped", 0)
    assert narrow.row("first").status == "running"
    release(narrow)
    for run_id in ("first", "second"):
        narrow.until(lambda run_id=run_id: narrow.ended(run_id))
    began = [narrow.summary(run_id) for run_id in ("first", "second")]
    assert [summary["status"] for summary in began] == ["completed"] * 2
    times = [
        os.stat(narrow.home / "runs" / run_id / "summary.json").st_mtime
        for run_id in ("first", "second")
    ]
    assert times == sorted(times)


# ---- members ----------------------------------------------------------------------------------


def test_a_revoked_site_is_cut_off_at_once_and_can_enrol_again(narrow):
    begin(narrow, "cut", quorum=1)
    with narrow.as_lead() as lead:
        lead.revoke(
            RevokeRequest(role="site", name="lumi", reason="its disk was stolen", signed=None),
            timeout=HANG_S,
        )
        narrow.until(lambda: "lumi" not in narrow.connected(), 5)
        with pytest.raises(grpc.RpcError) as refused:
            lead.revoke(
                RevokeRequest(role="operator", name="lead", reason="me", signed=None),
                timeout=HANG_S,
            )
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        found = {m.name: m for m in lead.list_members(MembersRequest(), timeout=HANG_S).members}
    assert (found["lumi"].status, found["lumi"].reason) == ("revoked", "its disk was stolen")
    complete(narrow, "cut")
    last = narrow.summary("cut")["rounds"][-1]
    assert last["sites"].get("lumi", {}).get("status") != "took_part"
    enrol_identity(narrow.folder / "lumi" / "identity", narrow.invite("lumi"))
    narrow.until(lambda: "lumi" in narrow.connected())
    complete_both(narrow)


def complete_both(rig):
    assert rig.submit("again").run_id == "again"
    complete(rig, "again")
