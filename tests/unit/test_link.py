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
from fedfactory.coordinator.blobs import BlobStore
from fedfactory.coordinator.link import Link, LinkRing, LinkServer

REF = BlobRef(
    digest="sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", bytes=5
)


class Doors:
    """What the link needs of a gateway, without its network (which has contract tests)."""

    def __init__(self, root):
        self.store = BlobStore(root)
        self.offered = defaultdict(set)
        self.rung = []

    def roster(self):
        return {"cesga": 7, "lumi": 8}

    def connected(self):
        return ["cesga"]

    def offer(self, site, digest):
        self.offered[site].add(digest)

    def ring(self, site):
        self.rung.append(site)

    def discard(self, digest):
        self.store.discard(digest)

    def traffic(self):
        return {"cesga": {"down": 1, "up": 2}}


@pytest.fixture
def gateway(tmp_path):
    return Doors(tmp_path / "blobs")


@pytest.fixture
def server(tmp_path, gateway):
    with LinkServer(tmp_path / "link.sock", gateway, tmp_path / "staging") as server:
        yield server
    assert not (tmp_path / "link.sock").exists()
    assert not [t for t in threading.enumerate() if t.name.startswith("link")], "threads left"


@pytest.fixture
def link(tmp_path, server):
    with Link(tmp_path / "link.sock") as link:
        link.hello()
        yield link


def heard(link):
    return link.events.get(timeout=10)


def eventually(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_hello_tells_who_is_there_and_where_things_lie(tmp_path, server):
    with Link(tmp_path / "link.sock") as link:
        assert link.hello() == {"cesga": 7, "lumi": 8}
        assert link.connected() == ["cesga"]
        assert link.staging == tmp_path / "staging"
        assert link.blob_path(REF.digest) == tmp_path / "blobs" / REF.digest[7:]


def test_calls_reach_the_gateway(link, gateway):
    (link.staging / "model").write_bytes(b"hello")
    link.adopt(link.staging / "model", REF)
    assert link.blob_path(REF.digest).read_bytes() == b"hello"
    link.offer({"cesga": REF.digest, "lumi": REF.digest})
    assert gateway.offered == {"cesga": {REF.digest}, "lumi": {REF.digest}}
    link.ring(["cesga", "lumi"])
    assert gateway.rung == ["cesga", "lumi"]
    assert link.traffic() == {"cesga": {"down": 1, "up": 2}}
    link.discard([REF.digest])
    assert not link.blob_path(REF.digest).exists()


def test_an_upload_is_claimed_by_its_site(link, gateway):
    gateway.store.receive("cesga", REF, [b"hello"])
    assert not link.claim("lumi", REF.digest)
    assert link.claim("cesga", REF.digest)


def test_a_blob_held_twice_is_discarded_twice(link, gateway):
    for site in ("cesga", "lumi"):
        gateway.store.receive(site, REF, [b"hello"])
    link.discard([REF.digest])
    assert link.blob_path(REF.digest).exists()
    gateway.store.receive("cesga", REF, [b"hello"])
    link.discard([REF.digest, REF.digest])
    assert not link.blob_path(REF.digest).exists()


def test_what_the_gateway_could_not_do_is_said_and_the_link_goes_on(link, tmp_path):
    (link.staging / "model").write_bytes(b"other length")
    with pytest.raises(EnvironmentFailedError, match=r"could not adopt.*12 bytes long, expected 5"):
        link.adopt(link.staging / "model", REF)
    with pytest.raises(EnvironmentFailedError, match="FileNotFoundError"):
        link.adopt(tmp_path / "nowhere", REF)
    with pytest.raises(EnvironmentFailedError, match="no such call"):
        link._call({"call": "shutdown"})
    assert link.traffic()


def test_rings_arrive_as_events(link, gateway, server):
    gateway.on_reply("message-1")
    gateway.on_connect("lumi")
    gateway.on_disconnect("cesga")
    server.stop("asked")
    server.fail("SuperLink died")
    assert [heard(link) for _ in range(5)] == [
        LinkRing(event="reply", message="message-1"),
        LinkRing(event="site_connected", site="lumi"),
        LinkRing(event="site_lost", site="cesga"),
        LinkRing(event="stop", reason="asked"),
        LinkRing(event="failed", reason="SuperLink died"),
    ]


def test_a_stop_before_the_serverapp_is_there_is_not_lost(tmp_path, server):
    server.stop("early")
    with Link(tmp_path / "link.sock") as link:
        link.hello()
        assert heard(link) == LinkRing(event="stop", reason="early")


def test_calls_from_many_threads_get_their_own_answers(link, gateway):
    gateway.store.receive("cesga", REF, [b"hello"])
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
    link = Link(tmp_path / "link.sock")
    link.hello()
    assert not server.ended
    link.__exit__(None, None, None)
    eventually(lambda: server.ended)
    with Link(tmp_path / "link.sock") as again:  # another may come
        again.hello()
        assert not server.ended


def test_the_serverapp_notices_when_the_gateway_dies(tmp_path, gateway):
    server = LinkServer(tmp_path / "link.sock", gateway, tmp_path / "staging")
    with Link(tmp_path / "link.sock") as link:
        link.hello()
        server.__exit__(None, None, None)
        assert heard(link).event == "closed"
        start = time.monotonic()
        for _ in range(2):
            with pytest.raises(EnvironmentFailedError):
                link.traffic()
        assert time.monotonic() - start < 5


def test_one_client_at_a_time(tmp_path, link):
    with Link(tmp_path / "link.sock") as second:
        assert heard(second).event == "closed"
        with pytest.raises(EnvironmentFailedError):
            second.hello()
    assert link.traffic()


def test_another_user_is_turned_away(tmp_path, server, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with Link(tmp_path / "link.sock") as link:
        assert heard(link).event == "closed"
    assert not server.ended


def test_the_socket_is_ours_alone_and_its_path_may_be_long(tmp_path, gateway):
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    with LinkServer(deep / "link.sock", gateway, tmp_path / "staging"):
        mode = (deep / "link.sock").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
        with Link(deep / "link.sock") as link:
            assert link.hello()


def test_nobody_there_is_said(tmp_path):
    with pytest.raises(EnvironmentFailedError, match=r"link\.sock"):
        Link(tmp_path / "link.sock")


def test_garbage_ends_the_link_not_the_gateway(tmp_path, server):
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(tmp_path / "link.sock"))
    client.sendall(b"no json\n")
    assert client.recv(10) == b""
    client.close()
    eventually(lambda: server.ended)
    with Link(tmp_path / "link.sock") as link:
        assert link.hello()
        with pytest.raises(queue.Empty):
            link.events.get(timeout=0.05)
