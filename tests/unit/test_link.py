"""The socket between gateway and ServerApp: one client of our user, who hears when it is over."""

import os
import queue
import socket
import stat
import threading
import time
from collections import defaultdict

import pytest

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.model import BlobRef
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
        self.moved = {"cesga": 10, "vega": 10}

    def subscribe(self, listener):
        self.listeners.append(listener)

    def unsubscribe(self, listener):
        self.listeners.remove(listener)

    def roster(self):
        return {"cesga": 7, "lumi": 8, "vega": 9}

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
    """A ServerApp's end that keeps what it hears."""

    def __init__(self, path):
        self.events = queue.SimpleQueue()
        super().__init__(path, self.events.put)


@pytest.fixture
def gateway(tmp_path):
    return Doors(tmp_path / "blobs")


@pytest.fixture
def server(tmp_path, gateway):
    with LinkServer(tmp_path / "link.sock", gateway, RUN, SITES) as server:
        yield server
    assert not (tmp_path / "link.sock").exists()
    assert gateway.listeners == []
    assert not [t for t in threading.enumerate() if t.name.startswith("link")], "threads left"


@pytest.fixture
def link(tmp_path, server):
    with Client(tmp_path / "link.sock") as link:
        link.hello()
        yield link


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"hello")
    return path


def heard(link):
    return link.events.get(timeout=HANG_S)


def connected(folder, monkeypatch):
    """Return a socket that is connected to the link; by a short path, as sockets need it."""
    monkeypatch.chdir(folder)
    client = socket.socket(socket.AF_UNIX)
    client.connect("link.sock")
    return client


def uploaded(gateway, site):
    gateway.store.receive(Peer(role=Role.SITE, name=site), REF, 0, [b"hello"])


def test_hello_tells_which_of_the_runs_sites_are_here(tmp_path, server):
    assert server.pid is None
    with Client(tmp_path / "link.sock") as link:
        assert link.hello().connected == ("cesga",)
        assert link.roster() == {"cesga": 7, "lumi": 8}
        assert link.blob_path(REF.digest) == tmp_path / "blobs" / REF.digest[7:]
        assert server.pid == os.getpid()
    until(lambda: server.pid is None)


def test_calls_reach_the_gateway(link, gateway, model):
    link.adopt(model, REF)
    assert link.blob_path(REF.digest).samefile(model)
    link.offer([("cesga", REF.digest), ("lumi", REF.digest)])
    assert gateway.offered == {(RUN, "cesga"): {REF.digest}, (RUN, "lumi"): {REF.digest}}
    link.ring(["cesga", "lumi"])
    assert gateway.rung == ["cesga", "lumi"]
    assert link.traffic() == {"cesga": {"down": 0, "up": 0}}  # what came before is no run's
    gateway.moved = {"cesga": 11, "lumi": 3, "vega": 15}
    assert link.traffic() == {"cesga": {"down": 1, "up": 2}, "lumi": {"down": 3, "up": 6}}
    link.discard([REF.digest])
    assert not link.blob_path(REF.digest).exists()
    assert model.read_bytes() == b"hello"


def test_an_upload_is_claimed_by_its_site(link, gateway):
    uploaded(gateway, "cesga")
    assert not link.claim("lumi", REF.digest)
    assert link.claim("cesga", REF.digest)
    assert link.blob_path(REF.digest).read_bytes() == b"hello"


def test_a_restore_holds_what_is_named_and_gives_up_the_rest(link, gateway, model):
    uploaded(gateway, "cesga")
    assert link.claim("cesga", REF.digest)
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
    server.replied("message-1")
    server.came("lumi")
    server.came("vega")
    server.went("cesga")
    server.left("vega", "offline")
    server.left("lumi", "offline")
    before = time.time()
    server.stop("asked", after_round=True)
    assert [heard(link) for _ in range(4)] == [
        LinkRing(event="reply", message="message-1"),
        LinkRing(event="site_connected", site="lumi"),
        LinkRing(event="site_lost", site="cesga"),
        LinkRing(event="site_left", site="lumi", code="offline"),
    ]
    stop = heard(link)
    assert stop == LinkRing(event="stop", reason="asked", after_round=True, at=stop.at)
    assert before <= stop.at <= time.time()


def test_what_was_asked_before_the_serverapp_came_is_told_to_each_that_comes(tmp_path, server):
    server.stop("early", after_round=False)
    server.left("lumi", "offline")
    told = []
    for _ in range(2):
        with Client(tmp_path / "link.sock") as link:
            link.hello()
            told.append([heard(link), heard(link)])
        until(lambda: server.pid is None)
    assert told[0] == told[1]  # the same time, so that it is known to be the same stop
    assert told[0][0].reason == "early"
    assert told[0][1] == LinkRing(event="site_left", site="lumi", code="offline")


def test_a_living_serverapp_beats_and_a_frozen_one_is_seen(tmp_path, server, monkeypatch):
    monkeypatch.setattr(link_module, "BEAT_S", 0.02)
    with Client(tmp_path / "link.sock") as link:
        link.hello()
        before = server.alive_at
        until(lambda: server.alive_at > before)
        link._over.set()  # the beats end
        link._threads[1].join()
        time.sleep(0.05)
        silent = server.alive_at
        time.sleep(0.1)
        assert server.alive_at == silent


def test_a_serverapp_whose_call_is_worked_on_is_alive(tmp_path, server, gateway):
    entered, go = threading.Event(), threading.Event()

    def ring(site):
        entered.set()
        go.wait(HANG_S)

    gateway.ring = ring
    with Client(tmp_path / "link.sock") as link:
        link.hello()
        caller = threading.Thread(target=lambda: link.ring(["cesga"]))
        caller.start()
        assert entered.wait(HANG_S)
        first = server.alive_at
        time.sleep(0.02)
        assert server.alive_at > first
        go.set()
        caller.join()


def test_the_gateway_never_waits_for_a_serverapp_that_does_not_read(tmp_path, server, monkeypatch):
    client = connected(tmp_path, monkeypatch)
    client.sendall(b'{"call": "hello", "pid": 1}\n')
    until(lambda: server.pid == 1)
    with prompt(5):
        for _ in range(20_000):
            server.replied("x" * 100)
    client.close()
    until(lambda: server.ended)


def test_calls_from_many_threads_get_their_own_answers(link, gateway):
    uploaded(gateway, "cesga")
    wrong = []

    def ask(site, expected):
        answers = {link.claim(site, REF.digest) for _ in range(200)}
        wrong.extend(answers - {expected})

    threads = [
        threading.Thread(target=ask, args=(site, site == "cesga")) for site in ("cesga", "lumi") * 2
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_gateway_notices_when_the_serverapp_dies(tmp_path, server):
    link = Client(tmp_path / "link.sock")
    link.hello()
    assert not server.ended
    link.close()
    until(lambda: server.ended)
    with Client(tmp_path / "link.sock") as again:  # another may come
        again.hello()
        assert not server.ended


def test_the_serverapp_notices_when_the_gateway_dies(tmp_path, gateway):
    server = LinkServer(tmp_path / "link.sock", gateway, RUN, SITES)
    with Client(tmp_path / "link.sock") as link:
        link.hello()
        link.hello()
        server.close()
        assert heard(link).event == "closed"
        with prompt(5):
            for _ in range(2):
                with pytest.raises(LinkClosedError):
                    link.traffic()


def test_one_client_at_a_time(tmp_path, link):
    with Client(tmp_path / "link.sock") as second:
        assert heard(second).event == "closed"
        with pytest.raises(LinkClosedError):
            second.hello()
    assert link.traffic()


def test_another_user_is_turned_away(tmp_path, server, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with Client(tmp_path / "link.sock") as link:
        assert heard(link).event == "closed"
    assert not server.ended


def test_the_socket_is_ours_alone_and_its_path_may_be_long(tmp_path, gateway):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with LinkServer(deep / "link.sock", gateway, RUN, SITES):
        mode = (deep / "link.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        with Client(deep / "link.sock") as link:
            assert link.hello()


def test_nobody_there_is_said(tmp_path):
    with pytest.raises(EnvironmentFailedError, match=r"link\.sock"):
        Client(tmp_path / "link.sock")


def test_garbage_ends_the_link_not_the_gateway(tmp_path, server, monkeypatch):
    client = connected(tmp_path, monkeypatch)
    client.sendall(b"no json\n")
    assert client.recv(10) == b""
    client.close()
    until(lambda: server.ended)
    with Client(tmp_path / "link.sock") as link:
        assert link.hello()
        with pytest.raises(queue.Empty):
            link.events.get(timeout=0.05)
