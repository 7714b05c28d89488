"""The socket between the daemon and a run's process: calls, rings, replies, and who hears the end."""

import queue
import socket
import threading
import time
from collections import defaultdict

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD
from fedfactory.coordinator.flower_seam import assume_app_identity, from_bytes, to_bytes
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.link_server import LinkServer
from fedfactory.coordinator.running import link as link_module
from fedfactory.coordinator.running.link import Link, LinkClosedError, LinkRing
from fedfactory.identity.roles import Peer, Role
from tests.patience import HANG_S, prompt, until

REF = BlobRef(
    digest="sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", bytes=5
)
RUN = "run-1"
SITES = ("cesga", "lumi")


class Doors:
    """What the link needs of a gateway, without its network (which has contract tests)."""

    def __init__(self, root):
        self.store = BlobStore(root)
        self.offered = defaultdict(set)
        self.rung = []
        self.listeners = []
        self.boxes = {}
        self.moved = {"cesga": 10, "vega": 10}

    def subscribe(self, listener):
        self.listeners.append(listener)

    def unsubscribe(self, listener):
        self.listeners.remove(listener)

    def open_mail(self, run, box):
        self.boxes[run] = box

    def close_mail(self, run, box):
        assert self.boxes.pop(run) is box

    def connected(self):
        return ["cesga", "vega"]

    def offer(self, run, site, digest):
        self.offered[run, site].add(digest)

    def ring(self, site):
        self.rung.append(site)

    def discard(self, run, digest):
        self.store.discard(run, digest)

    def traffic(self):
        return {site: {"down": n, "up": 2 * n} for site, n in self.moved.items()}


class Client(Link):
    """A run's process that keeps what it hears."""

    def __init__(self, daemon):
        self.events = queue.SimpleQueue()
        super().__init__(daemon, self.events.put)


@pytest.fixture
def gateway(tmp_path):
    return Doors(tmp_path / "blobs")


@pytest.fixture
def sockets():
    return socket.socketpair()


@pytest.fixture
def server(sockets, gateway):
    early = [LinkRing(event="stop", reason="early", at=5.0)]
    server = LinkServer(
        sockets[0], gateway, RUN, SITES, moved_before=gateway.traffic(), rings=early
    )
    yield server
    server.close()
    assert gateway.listeners == []
    assert gateway.boxes == {}
    assert not [t for t in threading.enumerate() if t.name.startswith("link")], "threads left"


@pytest.fixture
def quiet(sockets, server):
    with Client(sockets[1]) as link:
        yield link


@pytest.fixture
def link(quiet):
    quiet.greeting = quiet.hello()
    assert heard(quiet).reason == "early"
    assume_app_identity(quiet.greeting.run)
    return quiet


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"hello")
    return path


def heard(link):
    return link.events.get(timeout=HANG_S)


def uploaded(gateway, site):
    gateway.store.receive(Peer(role=Role.SITE, name=site), REF, 0, [b"hello"])


def order(link, site, text="an order"):
    """Push a message for a site; return its id."""
    content = RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: text})})
    node = link.greeting.nodes[site]
    message = Message(content, dst_node_id=node, message_type="train", group_id="1", ttl=60.0)
    (sent,) = link.push([to_bytes(message)])
    return sent


def test_hello_tells_which_of_the_runs_sites_are_here(tmp_path, server, quiet):
    assert not server.greeted
    hello = quiet.hello()
    assert hello.connected == ("cesga",)
    assert set(hello.nodes) == set(SITES)
    assert quiet.blob_path(REF.digest) == tmp_path / "blobs" / REF.digest[7:]
    assert server.greeted


def test_calls_reach_the_gateway(link, gateway, model):
    link.adopt(model, REF)
    assert link.blob_path(REF.digest).samefile(model)
    link.offer([("cesga", REF.digest), ("lumi", REF.digest)])
    assert gateway.offered == {(RUN, "cesga"): {REF.digest}, (RUN, "lumi"): {REF.digest}}
    assert link.traffic() == {"cesga": {"down": 0, "up": 0}}  # what came before is no run's
    gateway.moved = {"cesga": 11, "lumi": 3, "vega": 15}
    assert link.traffic() == {"cesga": {"down": 1, "up": 2}, "lumi": {"down": 3, "up": 6}}
    link.discard([REF.digest])
    link.traffic()  # answered after it
    assert not link.blob_path(REF.digest).exists()
    assert model.read_bytes() == b"hello"


def test_an_order_waits_for_its_site_which_is_rung(link, server, gateway):
    first, second = order(link, "cesga", "one"), order(link, "cesga", "two")
    assert gateway.rung == ["cesga", "cesga"]
    assert server.fetch("lumi") is None
    found = server.fetch("cesga")
    assert (found.message_id, found.text, found.more) == (first, "one", True)
    found = server.fetch("cesga")
    assert (found.message_id, found.text, found.more) == (second, "two", False)
    assert server.fetch("cesga") is None


def test_a_reply_comes_with_its_upload_claimed_in_one_exchange(link, server, gateway):
    asked = order(link, "cesga")
    server.fetch("cesga")
    uploaded(gateway, "cesga")
    assert server.reply("cesga", asked, "done", REF.digest) is True
    reply = heard(link)
    assert (reply.message, reply.claimed) == (asked, REF.digest)
    message = from_bytes(reply.flower)
    assert message.metadata.reply_to_message_id == asked
    assert message.content[MESSAGE_RECORD][MESSAGE_FIELD] == "done"
    assert link.blob_path(REF.digest).read_bytes() == b"hello"
    assert server.reply("cesga", asked, "done", REF.digest) is True  # sent again: taken again
    with pytest.raises(queue.Empty):
        link.events.get(timeout=0.05)


def test_an_upload_is_claimed_by_its_site_alone(link, server, gateway):
    asked = order(link, "lumi")
    server.fetch("lumi")
    uploaded(gateway, "cesga")
    assert server.reply("lumi", asked, "done", REF.digest) is True
    assert heard(link).claimed is None


def test_only_the_site_that_was_given_an_order_answers_it(link, server):
    asked = order(link, "cesga")
    with pytest.raises(IdentityError):
        server.reply("cesga", asked, "before it was fetched", None)
    server.fetch("cesga")
    with pytest.raises(IdentityError):
        server.reply("lumi", asked, "another's", None)
    assert server.reply("cesga", "unknown", "of another run", None) is None
    assert server.reply("cesga", asked, "mine", None) is True


def test_an_upload_that_cannot_be_kept_leaves_the_order_open(link, server, gateway, monkeypatch):
    asked = order(link, "cesga")
    server.fetch("cesga")

    def full(*_):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(gateway.store, "claim", full)
    with pytest.raises(OSError, match="no space"):
        server.reply("cesga", asked, "done", REF.digest)
    monkeypatch.undo()
    uploaded(gateway, "cesga")
    assert server.reply("cesga", asked, "done", REF.digest) is True
    assert heard(link).claimed == REF.digest


def test_a_reply_that_breaks_the_engine_keeps_no_claim(link, server, gateway, monkeypatch):
    uploaded(gateway, "cesga")
    sent = order(link, "cesga")
    server.fetch("cesga")
    with monkeypatch.context() as patched:
        patched.setattr(server._engine, "reply", lambda *_: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            server.reply("cesga", sent, "done", REF.digest)
    assert not gateway.store._holds.is_held(REF.digest)
    uploaded(gateway, "cesga")
    assert server.reply("cesga", sent, "done", REF.digest)
    assert heard(link).claimed == REF.digest


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_process_whose_call_broke_the_link_counts_as_silent(quiet, server, monkeypatch):
    def breaks(*_):
        raise AssertionError

    monkeypatch.setattr(server, "_handle", breaks)
    with pytest.raises(LinkClosedError):
        quiet.hello()
    until(lambda: server.ended)
    until(lambda: server.alive_at < time.monotonic() - 0.05)


def test_a_restore_holds_what_is_named_and_gives_up_the_rest(link, gateway):
    uploaded(gateway, "cesga")
    link.restore([("cesga", REF.digest)], [])
    assert link.blob_path(REF.digest).exists()
    link.restore([], [])
    assert not link.blob_path(REF.digest).exists()


def test_what_the_gateway_could_not_do_is_said_and_the_link_goes_on(link, tmp_path, model):
    model.write_bytes(b"other length")
    with pytest.raises(EnvironmentFailedError, match=r"could not adopt.*12 bytes long, expected 5"):
        link.adopt(model, REF)
    with pytest.raises(EnvironmentFailedError, match="FileNotFoundError"):
        link.adopt(tmp_path / "nowhere", REF)
    with pytest.raises(EnvironmentFailedError, match="no such call"):
        link._call({"call": "shutdown"})
    assert link.traffic()


def test_rings_arrive_in_order_and_those_of_other_sites_do_not(link, server):
    server.came("lumi")
    server.came("vega")
    server.went("cesga")
    left = LinkRing(event="site_left", site="lumi", code="offline")
    server.tell(left)
    assert [heard(link) for _ in range(3)] == [
        LinkRing(event="site_connected", site="lumi"),
        LinkRing(event="site_lost", site="cesga"),
        left,
    ]


def test_what_happens_before_the_hello_is_in_the_greeting_or_told_after_it(server, quiet):
    server.came("lumi")  # the greeting says who is here
    left = LinkRing(event="site_left", site="lumi", code="offline")
    server.tell(left)
    quiet.hello()  # and both are heard when it returns, so that a run does not begin without them
    assert quiet.events.get_nowait() == LinkRing(event="stop", reason="early", at=5.0)
    assert quiet.events.get_nowait() == left


def test_a_living_process_beats_and_a_frozen_one_is_seen(sockets, server, monkeypatch):
    monkeypatch.setattr(link_module, "BEAT_S", 0.02)
    with Client(sockets[1]) as link:
        link.hello()
        before = server.alive_at
        until(lambda: server.alive_at > before)
        link._over.set()  # the beats end
        link._threads[1].join()
        time.sleep(0.05)
        silent = server.alive_at
        time.sleep(0.1)
        assert server.alive_at == silent


def test_a_process_whose_call_is_worked_on_is_alive(link, server, gateway):
    entered, go = threading.Event(), threading.Event()

    def offer(*_):
        entered.set()
        go.wait(HANG_S)

    gateway.offer = offer
    caller = threading.Thread(target=lambda: link.offer([("cesga", REF.digest)]))
    caller.start()
    assert entered.wait(HANG_S)
    first = server.alive_at
    time.sleep(0.02)
    assert server.alive_at > first
    go.set()
    caller.join()


def test_the_daemon_never_waits_for_a_process_that_does_not_read(sockets, server):
    sockets[1].sendall(b'{"call": "hello"}\n')
    until(lambda: server.greeted)
    with prompt(5):
        for _ in range(20_000):
            server.came("lumi")
    sockets[1].close()


def test_calls_from_many_threads_get_their_own_answers(link, model):
    link.adopt(model, REF)
    wrong = []

    def ask(call, expected):
        wrong.extend(found for found in (call() for _ in range(200)) if found != expected)

    threads = [
        threading.Thread(target=ask, args=pair)
        for pair in ((link.traffic, link.traffic()), (lambda: link.push([]), [])) * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_daemon_notices_when_the_process_dies_and_its_orders_are_no_more(sockets, gateway):
    over = threading.Event()
    server = LinkServer(sockets[0], gateway, RUN, SITES, moved_before={}, over=over.set)
    link = Client(sockets[1])
    link.greeting = link.hello()
    assume_app_identity(link.greeting.run)
    asked = order(link, "cesga")
    server.fetch("cesga")
    uploaded(gateway, "cesga")
    assert not over.is_set()
    link.close()
    assert over.wait(HANG_S)
    assert gateway.boxes == {}
    assert server.reply("cesga", asked, "too late", REF.digest) is False
    assert not gateway.store.path(REF.digest).exists()  # claimed for nobody, given up again
    server.close()


def test_the_process_notices_when_the_daemon_dies(server, link):
    server.close()
    assert heard(link).event == "closed"
    with prompt(5):
        for _ in range(2):
            with pytest.raises(LinkClosedError):
                link.traffic()


def test_garbage_ends_the_link(sockets, server):
    sockets[1].sendall(b"no json\n")
    assert sockets[1].recv(10) == b""
    sockets[1].close()
