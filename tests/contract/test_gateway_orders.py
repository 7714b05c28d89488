"""Orders and replies at the gateway: each site its own, each once, whatever a site sends."""

import contextlib
import socket
import threading
import time
from collections import Counter

import grpc
import pytest

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError, ProtocolError
from fedfactory.coordinator import flower_seam
from fedfactory.coordinator.flower_seam import Fetched
from fedfactory.coordinator.gateway.holds import Holds
from fedfactory.coordinator.gateway.mail import Mail
from fedfactory.coordinator.running.link import LinkRing
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import MAX_ORDER_BYTES
from fedfactory.wire.rpc.service import GatewayCalls
from fedfactory.wire.tls import open_channel
from tests.contract.gateway_rig import RUN, open_rig, ref_of
from tests.patience import HANG_S, until

CESGA = Peer(role=Role.SITE, name="cesga")
DATA = b"an update" * 1000
REF = ref_of(DATA)


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path) as rig:
        rig.cesga, rig.lumi = rig.admit("cesga"), rig.admit("lumi")
        yield rig


@pytest.fixture
def run(rig):
    return rig.run("cesga", "lumi")


def fetched(run, site, client, text="an order"):
    """Push an order and fetch it; return its id."""
    sent = run.order(site, text)
    assert client.fetch().message_id == sent
    return sent


def came(run, *replies):
    """Wait until these replies, and no others, have come to the run's process."""
    until(lambda: len(run.replies) >= len(replies))
    run.link.traffic()  # its answer comes after whatever else was to come
    assert sorted(run.replies) == sorted(replies)


def upload(client, tmp_path, data=DATA):
    path = tmp_path / "update"
    path.write_bytes(data)
    client.upload(path, ref_of(data))


def expire(run, message_id):
    """Let the time of an order that was pushed be over."""
    found = run.server._engine._open[message_id]
    found.message.metadata.__dict__["_ttl"] = 1e-3
    found.until = found.message.metadata.created_at + 1e-3


def raw(rig, site, message_id, text=b"done", digest=""):
    """A reply by the bare protocol; return its status, or whether it was awaited."""
    reply = pb.SiteReply(message_id=message_id, text=text, digest=digest)
    try:
        return rig.calls(site).send_reply(reply, timeout=HANG_S).awaited
    except grpc.RpcError as error:
        return error.code().name


# ---- fetching --------------------------------------------------------------------------------


def test_a_site_fetches_what_waits_for_it_oldest_first_and_each_once(rig, run):
    sent = run.push("cesga", "1", "2", "3")
    theirs = run.order("lumi", "for lumi")
    found = [rig.cesga.fetch() for _ in range(3)]
    assert [(one.message_id, one.text) for one in found] == list(zip(sent, "123", strict=True))
    assert [one.more for one in found] == [True, True, False]
    assert rig.cesga.fetch() is None
    assert rig.lumi.fetch().message_id == theirs


def test_a_push_rings_each_site_that_it_is_for(rig, run):
    bells = {"cesga": rig.cesga.listen(), "lumi": rig.lumi.listen()}
    for bell in bells.values():
        next(bell)
    until(lambda: len(run.heard) == 2)  # the process hears who came
    assert {(said.event, said.site) for said in run.heard} == {
        ("site_connected", "cesga"), ("site_connected", "lumi"),
    }  # fmt: skip
    run.order("lumi")
    next(bells["lumi"])
    assert rig.lumi.fetch() is not None
    run.order("cesga")
    next(bells["cesga"])
    assert rig.cesga.fetch() is not None


@pytest.mark.parametrize("comes", [True, False])
def test_a_site_that_comes_or_goes_while_a_process_says_hello_is_told(rig, monkeypatch, comes):
    """Once it was counted for the greeting, and before the process has it."""
    bell = rig.cesga.listen()
    if not comes:
        next(bell)
    real, heard = rig.gateway.connected, len(rig.ear.heard)

    def meanwhile():
        found = real()
        if comes:
            next(bell)
        else:
            rig.cesga.close()
        until(lambda: len(rig.ear.heard) > heard)
        return found

    monkeypatch.setattr(rig.gateway, "connected", meanwhile)
    run = rig.run("cesga", "lumi")
    assert run.greeting.connected == (() if comes else ("cesga",))
    event = "site_connected" if comes else "site_lost"
    until(lambda: [(said.event, said.site) for said in run.heard] == [(event, "cesga")])


def test_an_order_waits_for_a_site_that_is_away(rig, run):
    sent = run.order("cesga", "Größe: 7 µm")
    client = rig.client(rig.enrol(Role.SITE, "cesga"))
    next(client.listen())
    found = client.fetch()
    assert (found.message_id, found.text) == (sent, "Größe: 7 µm")


def test_an_order_whose_time_is_over_is_not_given(rig, run):
    run.order("cesga", "over", ttl=0.05)
    time.sleep(0.06)
    good = run.order("cesga", "good")
    assert rig.cesga.fetch().message_id == good
    assert rig.cesga.fetch() is None


def test_a_site_that_is_not_of_the_run_is_given_nothing(rig, run):
    run.order("cesga")
    assert rig.admit("other").fetch() is None
    assert rig.cesga.fetch() is not None


def test_runs_are_fetched_from_in_turn_for_each_site(rig, run):
    other = rig.run("cesga", "lumi", run_id="run-2")
    for site in ("cesga", "lumi"):
        run.push(site, *[f"a {number}" for number in range(3)])
        other.push(site, *[f"b {number}" for number in range(3)])
    found = {"cesga": [], "lumi": []}
    for _ in range(6):  # side by side: neither takes the other's turn
        found["cesga"].append(rig.cesga.fetch())
        found["lumi"].append(rig.lumi.fetch())
    for orders in found.values():
        assert [one.text for one in orders] == ["a 0", "b 0", "a 1", "b 1", "a 2", "b 2"]
        assert [one.more for one in orders] == [True] * 5 + [False]


def test_more_is_said_of_what_waits_in_another_run_and_only_then(rig, run):
    other = rig.run("cesga", run_id="run-2")
    run.order("cesga")
    assert not rig.cesga.fetch().more
    run.order("cesga")
    other.order("cesga")
    assert rig.cesga.fetch().more
    assert not rig.cesga.fetch().more


def test_a_run_that_is_over_gives_nothing_and_the_next_process_of_it_gives_its_own(rig, run):
    run.order("cesga", "of the first process")
    run.close()
    until(run.over.is_set)
    assert rig.cesga.fetch() is None
    again = rig.run("cesga", "lumi")
    sent = again.order("cesga", "of the second")
    assert rig.cesga.fetch().message_id == sent


def test_a_new_process_takes_the_place_before_the_older_has_gone(rig, run):
    old = run.order("cesga", "of the first process")
    again = rig.run("cesga", "lumi")
    sent = again.order("cesga", "of the second")
    run.close()
    until(run.over.is_set)
    assert rig.cesga.fetch().message_id == sent
    assert not rig.cesga.send(old, "done", "")
    assert rig.cesga.send(sent, "done", "")
    came(again, (sent, "done", None))


def test_an_order_of_the_largest_size_goes_and_a_larger_one_is_refused_at_its_sender(rig, run):
    largest = "ü" * (MAX_ORDER_BYTES // 2)
    refused, *sent = run.push("cesga", largest + "x", "small", largest)
    assert refused is None
    found = [rig.cesga.fetch() for _ in sent]
    assert [(one.message_id, one.text) for one in found] == list(
        zip(sent, ("small", largest), strict=True)
    )


@pytest.mark.parametrize("garbage", [b"", b"\xff\xff\xff", b"\x0a\x02\x08"])
def test_a_process_that_pushes_no_message_is_refused_and_still_served(rig, run, garbage):
    with pytest.raises(EnvironmentFailedError, match="could not push"):
        run.link.push([garbage])
    fetched(run, "cesga", rig.cesga)


# ---- replying --------------------------------------------------------------------------------


def test_a_reply_comes_to_the_run_that_asked(rig, run):
    other = rig.run("cesga", run_id="run-2")
    mine, theirs = fetched(run, "cesga", rig.cesga), fetched(other, "cesga", rig.cesga)
    assert rig.cesga.send(theirs, "for two", "")
    assert rig.cesga.send(mine, "for one", "")
    came(run, (mine, "for one", None))
    came(other, (theirs, "for two", None))


def test_another_sites_order_is_not_answered(rig, run):
    sent = fetched(run, "cesga", rig.cesga)
    with pytest.raises(IdentityError):
        rig.lumi.send(sent, "forged", "")
    assert rig.cesga.send(sent, "mine", "")
    assert not rig.lumi.send(sent, "forged", "")
    came(run, (sent, "mine", None))


def test_an_order_that_was_not_fetched_is_not_answered(rig, run):
    sent = run.order("cesga")
    for client in (rig.cesga, rig.lumi):
        with pytest.raises(IdentityError):
            client.send(sent, "guessed", "")
    assert rig.cesga.fetch().message_id == sent
    assert rig.cesga.send(sent, "mine", "")
    came(run, (sent, "mine", None))


@pytest.mark.parametrize(
    "message_id",
    ["", "unknown", "00000000-0000-0000-0000-000000000000", "../../etc", "a" * 900_000, "\x00ü\n"],
    ids=["empty", "word", "zero", "path", "long", "odd"],
)
def test_nobody_waits_for_a_reply_to_an_unknown_order(rig, run, tmp_path, message_id):
    upload(rig.cesga, tmp_path)
    assert raw(rig, "cesga", message_id, digest=REF.digest) is False
    assert not rig.store.path(REF.digest).exists()
    sent = fetched(run, "cesga", rig.cesga)
    assert rig.cesga.send(sent, "done", "")
    came(run, (sent, "done", None))


def test_nobody_waits_once_the_run_is_over(rig, run):
    sent = fetched(run, "cesga", rig.cesga)
    run.close()
    until(run.over.is_set)
    assert not rig.cesga.send(sent, "done", "")


def test_a_reply_whose_time_is_over_is_not_awaited_and_its_upload_not_kept(rig, run, tmp_path):
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)
    expire(run, sent)
    for _ in range(2):
        assert not rig.cesga.send(sent, "late", REF.digest)
    assert run.replies == []
    assert not rig.store.path(REF.digest).exists()
    assert (len(run.server._engine._open), run.server._engine._state.num_message_ins()) == (0, 0)


def test_a_late_reply_takes_nothing_from_an_update_of_the_same_bytes(rig, run, tmp_path):
    """The file that an accepted reply came with stays, whatever the site sends after it."""
    late = fetched(run, "cesga", rig.cesga)
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)
    assert rig.cesga.send(sent, "done", REF.digest)
    expire(run, late)
    assert not rig.cesga.send(late, "late", REF.digest)
    assert rig.cesga.send(sent, "done", REF.digest)
    came(run, (sent, "done", REF.digest))
    assert rig.store.path(REF.digest).read_bytes() == DATA
    run.link.discard([REF.digest])
    run.link.traffic()  # answered after it
    assert not rig.store.path(REF.digest).exists()


def test_a_reply_that_is_sent_again_is_awaited_and_comes_once(rig, run, tmp_path):
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)
    for text in ("first", "first", "another"):
        assert rig.cesga.send(sent, text, REF.digest)
    came(run, (sent, "first", REF.digest))
    run.link.discard([REF.digest])  # one claim, however often it was sent
    run.link.traffic()  # answered after it
    assert not rig.store.path(REF.digest).exists()


def test_of_two_replies_at_once_one_is_taken(rig, run, monkeypatch):
    sent = fetched(run, "cesga", rig.cesga)
    claiming, go_on, real = threading.Event(), threading.Event(), rig.store.claim

    def slowly(*claim):
        claiming.set()
        assert go_on.wait(HANG_S)
        return real(*claim)

    monkeypatch.setattr(rig.store, "claim", slowly)
    taken = []
    first = threading.Thread(target=lambda: taken.append(rig.cesga.send(sent, "1", REF.digest)))
    first.start()
    assert claiming.wait(HANG_S)
    with pytest.raises(EnvironmentFailedError):  # it tries again later
        rig.client(rig.enrol(Role.SITE, "cesga")).send(sent, "2", "")
    go_on.set()
    first.join(HANG_S)
    assert taken == [True]
    assert rig.cesga.send(sent, "2", "")
    came(run, (sent, "1", None))


# ---- the upload that comes with it -----------------------------------------------------------


def test_an_upload_is_claimed_before_the_run_hears_of_it(rig, run, tmp_path, monkeypatch):
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)
    there, hear = [], run._hear

    def look_and_hear(said):
        there.append(run.link.blob_path(REF.digest).read_bytes() == DATA)
        hear(said)

    run.link._tell = look_and_hear
    assert rig.cesga.send(sent, "done", REF.digest)
    came(run, (sent, "done", REF.digest))
    assert there == [True]
    assert rig.arriving() == {}


def test_a_blob_that_the_site_has_not_sent_is_not_claimed(rig, run, tmp_path):
    sent = fetched(run, "cesga", rig.cesga)
    assert rig.cesga.send(sent, "boasting", REF.digest)
    came(run, (sent, "boasting", None))
    assert not rig.store.path(REF.digest).exists()


def test_another_sites_blob_is_not_claimed(rig, run, tmp_path):
    mine, theirs = fetched(run, "cesga", rig.cesga), fetched(run, "lumi", rig.lumi)
    upload(rig.lumi, tmp_path)
    assert rig.cesga.send(mine, "before", REF.digest)
    assert rig.lumi.send(theirs, "honest", REF.digest)
    again = fetched(run, "cesga", rig.cesga)
    assert rig.cesga.send(again, "after", REF.digest)  # lies where the run can read it
    came(
        run,
        (mine, "before", None), (theirs, "honest", REF.digest), (again, "after", None),
    )  # fmt: skip
    assert rig.store.path(REF.digest).read_bytes() == DATA


def test_the_model_that_a_site_was_given_is_not_its_upload(rig, run):
    ref = rig.offer("cesga", DATA)
    sent = fetched(run, "cesga", rig.cesga)
    assert rig.cesga.send(sent, "yours", ref.digest)
    came(run, (sent, "yours", None))


def test_equal_bytes_of_two_sites_are_claimed_for_each(rig, run, tmp_path):
    mine, theirs = fetched(run, "cesga", rig.cesga), fetched(run, "lumi", rig.lumi)
    for client, sent in ((rig.cesga, mine), (rig.lumi, theirs)):
        upload(client, tmp_path)
        assert client.send(sent, "done", REF.digest)
    came(run, (mine, "done", REF.digest), (theirs, "done", REF.digest))
    run.link.discard([REF.digest])
    run.link.traffic()  # answered after it
    assert rig.store.path(REF.digest).exists()
    run.link.discard([REF.digest])
    run.link.traffic()  # answered after it
    assert not rig.store.path(REF.digest).exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_a_claim_that_fails_leaves_the_order_to_be_answered(rig, run, tmp_path, monkeypatch, error):
    """And it is held once, when it succeeds at last."""
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)

    def fails(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(rig.store._arrivals, "take", fails)
        for _ in range(2):
            with pytest.raises(EnvironmentFailedError):
                rig.cesga.send(sent, "done", REF.digest)
    assert run.replies == []
    assert rig.cesga.send(sent, "done", REF.digest)
    came(run, (sent, "done", REF.digest))
    assert rig.store.path(REF.digest).read_bytes() == DATA
    run.link.discard([REF.digest])
    run.link.traffic()  # answered after it
    assert not rig.store.path(REF.digest).exists()


def test_a_reply_that_flower_fails_at_leaves_the_order_to_be_answered(rig, run, monkeypatch):
    sent = fetched(run, "cesga", rig.cesga)
    engine = run.server._engine

    def fails(*_):
        raise RuntimeError("Flower's own fault")

    with monkeypatch.context() as patched:
        patched.setattr(engine._state, "store_message_res", fails)
        with pytest.raises(EnvironmentFailedError):
            rig.cesga.send(sent, "done", "")
    assert rig.cesga.send(sent, "done", "")
    came(run, (sent, "done", None))


def test_a_reply_that_flower_does_not_give_back_is_not_awaited(rig, run, tmp_path, monkeypatch):
    """Its time was over just after it was stored: it is not said to have come when it is repeated."""
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)
    monkeypatch.setattr(run.server._engine._state, "get_message_res", lambda *_: [])
    for _ in range(2):
        assert not rig.cesga.send(sent, "late", REF.digest)
    came(run)
    assert rig.store._holds == Holds()


# ---- hostile values --------------------------------------------------------------------------

HOSTILE_TEXTS = {
    "empty": "",
    "nothing": "\x00" * 50,
    "odd": 'ü\u2028\ufffe\U0001f4a3 "\\ \r\n{"reply":',
    "deep": "[" * 100_000,
    "number": "9" * 100_000,
    "json lines": '{"answer": null}\n{"event": "stop"}\n',
    "largest": "x" * MAX_ORDER_BYTES,
}


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_a_replys_text_arrives_as_it_was_sent_and_nothing_reads_it(rig, run, monkeypatch, name):
    """In the daemon nothing of Flower's reads bytes of a site's: only the run's own messages."""
    sent = fetched(run, "cesga", rig.cesga)

    def never(*_):
        raise AssertionError("bytes are parsed in the daemon")

    monkeypatch.setattr(flower_seam, "from_bytes", never)
    assert raw(rig, "cesga", sent, HOSTILE_TEXTS[name].encode()) is True
    came(run, (sent, HOSTILE_TEXTS[name], None))
    assert [type(said) for said in run.heard if isinstance(said, LinkRing)] == []


def test_bytes_that_are_a_flower_message_are_text_like_any_other(rig, run):
    sent = fetched(run, "cesga", rig.cesga)
    forged = run.message("cesga", "forged").decode("latin-1")
    assert rig.cesga.send(sent, forged, "")
    came(run, (sent, forged, None))


@pytest.mark.parametrize("text", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"ok\x80"])
def test_a_text_that_is_not_utf_8_is_refused_and_the_order_left(rig, run, text):
    sent = fetched(run, "cesga", rig.cesga)
    assert raw(rig, "cesga", sent, text) == "INVALID_ARGUMENT"
    assert rig.cesga.send(sent, "done", "")
    came(run, (sent, "done", None))


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (MAX_ORDER_BYTES + 1, "INVALID_ARGUMENT"),
        (MAX_ORDER_BYTES + 50_000, "RESOURCE_EXHAUSTED"),
        (4_000_000, "RESOURCE_EXHAUSTED"),
    ],
)
def test_a_text_that_is_too_long_is_refused_and_the_order_left(rig, run, length, code):
    sent = fetched(run, "cesga", rig.cesga)
    assert raw(rig, "cesga", sent, b"x" * length) == code
    assert rig.cesga.send(sent, "done", "")
    came(run, (sent, "done", None))


@pytest.mark.parametrize(
    "digest",
    ["sha256:../../x", REF.digest.upper(), REF.digest + "\n", REF.digest[7:], "x" * 5000, "\x00"],
)
def test_what_is_no_digest_is_refused_and_the_order_left(rig, run, tmp_path, digest):
    upload(rig.cesga, tmp_path)
    sent = fetched(run, "cesga", rig.cesga)
    with pytest.raises(ProtocolError):
        rig.cesga.send(sent, "done", digest)
    assert rig.cesga.send(sent, "done", REF.digest)
    with pytest.raises(ProtocolError):
        rig.cesga.send(sent, "done", digest)
    came(run, (sent, "done", REF.digest))
    run.link.discard([REF.digest])
    run.link.traffic()  # answered after it
    assert rig.store._holds == Holds()


# ---- who may, and how much it is -------------------------------------------------------------


def test_orders_and_replies_are_counted(rig, run):
    before = {"down": 0, "up": 0}
    sent = fetched(run, "cesga", rig.cesga, "ü" * 50)
    rig.cesga.send(sent, "1234567", "")
    assert rig.cesga.fetch() is None
    assert rig.gateway.traffic().get("lumi", before) == before
    assert rig.gateway.traffic()["cesga"] == {"down": 100, "up": 7}
    assert run.link.traffic()["cesga"] == {"down": 100, "up": 7}


@pytest.mark.parametrize(
    ("role", "name"),
    [(Role.OPERATOR, "cesga"), (Role.VIEWER, "cesga"), (Role.INVITED, "newcomer")],
)
def test_no_other_role_fetches_or_replies(rig, run, role, name):
    """Not even under the site's own name."""
    waiting = run.order("cesga")
    with open_channel(rig.address, rig.enrol(role, name)) as channel:
        calls = GatewayCalls(channel)
        for call, request in (
            (calls.fetch_order, pb.FetchRequest()),
            (calls.send_reply, pb.SiteReply(message_id=waiting, text=b"done")),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                call(request, timeout=HANG_S)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert rig.cesga.fetch().message_id == waiting


def test_a_coordinators_certificate_fetches_nothing(rig, run):
    """Its usage is a server's: TLS refuses it, or its role does."""
    waiting = run.order("cesga")
    client = rig.client(rig.enrol(Role.COORDINATOR, "cesga"))
    with pytest.raises((IdentityError, EnvironmentFailedError)):
        client.fetch()
    assert rig.cesga.fetch().message_id == waiting


def test_a_revoked_site_neither_fetches_nor_replies(rig, run):
    sent = fetched(run, "cesga", rig.cesga)
    run.order("cesga")
    rig.registry.revoke(CESGA, by="ana", reason="lost its key")
    with pytest.raises(IdentityError):
        rig.cesga.fetch()
    with pytest.raises(IdentityError):
        rig.cesga.send(sent, "done", "")
    assert run.server.waits("cesga")
    assert run.replies == []


def test_who_is_cut_off_while_its_reply_is_taken_cannot_send_another(rig, run, monkeypatch):
    first, second = fetched(run, "cesga", rig.cesga), fetched(run, "cesga", rig.cesga)
    real = rig.store.claim

    def revoked_meanwhile(*claim):
        rig.registry.revoke(CESGA, by="ana", reason="lost its key")
        rig.gateway.cut(CESGA)
        return real(*claim)

    monkeypatch.setattr(rig.store, "claim", revoked_meanwhile)
    with contextlib.suppress(IdentityError, EnvironmentFailedError):
        rig.cesga.send(first, "in time", REF.digest)
    with pytest.raises(IdentityError):
        rig.client(rig.enrol(Role.SITE, "cesga")).send(second, "too late", "")
    assert all(message_id == first for message_id, *_ in run.replies)


# ---- a process that dies ---------------------------------------------------------------------


def test_a_process_that_dies_between_order_and_reply_leaves_nothing_half_done(rig, run, tmp_path):
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)
    run.link._socket.shutdown(socket.SHUT_RDWR)  # as the kernel does for one that is killed
    until(run.over.is_set)
    assert not rig.cesga.send(sent, "done", REF.digest)
    assert rig.arriving() != {}  # still the site's: it is claimed by the next reply
    again = rig.run("cesga", "lumi")
    again.link.restore((), ())
    resent = fetched(again, "cesga", rig.cesga)
    assert rig.cesga.send(resent, "done", REF.digest)
    came(again, (resent, "done", REF.digest))
    assert rig.store.path(REF.digest).read_bytes() == DATA


def test_a_process_that_dies_while_a_reply_is_taken_keeps_no_hold(rig, run, tmp_path, monkeypatch):
    sent = fetched(run, "cesga", rig.cesga)
    upload(rig.cesga, tmp_path)
    real = rig.store.claim

    def dies(*claim):
        run.close()
        return real(*claim)

    monkeypatch.setattr(rig.store, "claim", dies)
    assert not rig.cesga.send(sent, "done", REF.digest)
    assert not rig.store.path(REF.digest).exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_reply_that_outlives_its_process_takes_nothing_from_the_next(
    rig, run, tmp_path, monkeypatch, whole
):
    """The site sends back the model it was given, and the run's process dies meanwhile."""
    sent = fetched(run, "cesga", rig.cesga)
    staged = tmp_path / "model"
    staged.write_bytes(DATA)
    run.link.adopt(staged, REF)
    if whole:
        upload(rig.cesga, tmp_path)
    real, runs = rig.store._arrivals.take, [run]

    def dies(*call):
        run.close()
        runs.append(rig.run("cesga", "lumi"))
        runs[-1].link.restore((), [REF.digest])
        return real(*call)

    monkeypatch.setattr(rig.store._arrivals, "take", dies)
    assert not rig.cesga.send(sent, "done", REF.digest)
    assert rig.store.path(REF.digest).read_bytes() == DATA
    assert not rig.store._holds.claimed("cesga", REF.digest)
    runs[-1].link.discard([REF.digest])
    runs[-1].link.traffic()  # answered after it
    assert rig.store._holds == Holds()
    assert not rig.store.path(REF.digest).exists()


def test_a_process_that_has_not_said_hello_has_no_mail(rig):
    ours, theirs = socket.socketpair()
    from fedfactory.coordinator.link_server import LinkServer

    rig.gateway.open_run(RUN, ("cesga",), 1)
    server = LinkServer(ours, rig.gateway, RUN, ("cesga",), moved_before={})
    try:
        assert rig.cesga.fetch() is None
        assert not rig.cesga.send("unknown", "done", "")
    finally:
        theirs.close()
        server.close()


# ---- the boxes, in turn ----------------------------------------------------------------------


class Box:
    """A mailbox with so many messages for every site."""

    def __init__(self, name, count):
        self.left = [f"{name}{number}" for number in range(count)]

    def fetch(self, site):
        if not self.left:
            return None
        text = self.left.pop(0)
        return Fetched(message_id=text, text=text, more=bool(self.left))

    def waits(self, site):
        return bool(self.left)

    def reply(self, site, message_id, text, digest):
        return None


def test_a_run_that_ends_or_begins_anew_does_not_disturb_the_turns():
    mail, boxes = Mail(), {name: Box(name, 4) for name in "abc"}
    for name, box in boxes.items():
        mail.open(name, box)
    assert [mail.fetch("cesga").text for _ in range(4)] == ["a0", "b0", "c0", "a1"]
    mail.close("b", Box("b", 0))  # an older box of the run's: not the one that is open
    assert mail.fetch("cesga").text == "b1"
    mail.close("b", boxes["b"])
    mail.open("c", Box("C", 2))
    assert [mail.fetch("cesga").text for _ in range(4)] == ["C0", "a2", "C1", "a3"]
    assert mail.fetch("cesga") is None
    assert not mail.reply("cesga", "a0", "done", None)


# ---- many at once ----------------------------------------------------------------------------

SITES = tuple(f"site-{number}" for number in range(50))
EACH = 6


def test_many_sites_at_once_lose_nothing_and_are_given_nothing_twice(rig):
    """Fifty sites by two threads each, while orders are pushed and replies sent twice."""
    run = rig.run(*SITES)
    mail, lock, over = rig.gateway._mail, threading.Lock(), threading.Event()
    given, failed, sent = Counter(), [], {}

    def live(site):
        try:
            while not over.is_set():
                found = mail.fetch(site)
                if found is None:
                    over.wait(0.01)
                    continue
                with lock:
                    given[found.message_id] += 1
                for _ in range(2):
                    assert mail.reply(site, found.message_id, f"re: {found.text}", None)
        except BaseException as error:  # noqa: BLE001, told below
            failed.append(error)

    threads = [threading.Thread(target=live, args=(site,)) for site in SITES * 2]
    for thread in threads:
        thread.start()
    try:
        for number in range(EACH):
            for site in SITES:
                text = f"{site} {number}"
                sent[run.order(site, text)] = text
        until(lambda: failed or len(run.replies) >= len(sent), 60)
    finally:
        over.set()
        for thread in threads:
            thread.join(HANG_S)
    assert not failed
    assert given == Counter(sent.keys())
    came(run, *[(message_id, f"re: {text}", None) for message_id, text in sent.items()])
    engine = run.server._engine
    assert (
        len(engine._open),
        engine._state.num_message_ins(),
        engine._state.num_message_res(),
    ) == (0, 0, 0)
