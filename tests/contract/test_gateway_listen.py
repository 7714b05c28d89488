"""The doorbell: heard at once, replaced by the latest stream, cheap when many wait."""

import queue
import resource
import threading
import time

import grpc
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.node_pb2 import Node

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.coordinator.gateway.pacing import AT_ONCE, PATIENCE_S
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.service import GatewayCalls
from fedfactory.wire.tls import open_channel
from tests.contract.gateway_rig import LIMITS, open_rig
from tests.patience import HANG_S, prompt, until

CESGA = Peer(role=Role.SITE, name="cesga")


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path) as rig:
        yield rig


def test_the_first_ring_says_that_we_are_heard(rig):
    bell = rig.admit("cesga", 7).listen()
    next(bell)
    assert rig.gateway.connected() == ["cesga"]
    assert rig.ear.heard == [("came", "cesga")]


def test_a_ring_is_heard_at_once_and_by_its_site_alone(rig):
    mine, theirs = rig.admit("cesga", 7).listen(), rig.admit("lumi", 8).listen()
    next(mine), next(theirs)
    heard = threading.Event()
    listener = threading.Thread(target=lambda: (next(theirs, None), heard.set()))
    listener.start()
    with prompt(1.0):
        rig.gateway.ring("cesga")
        next(mine)
    assert not heard.is_set()
    rig.gateway.ring("lumi")
    listener.join(HANG_S)
    assert heard.is_set()


def test_rings_nobody_picked_up_do_not_pile_up(rig):
    bell = rig.admit("cesga", 7).listen()
    next(bell)
    for _ in range(10_000):
        rig.gateway.ring("cesga")
    rig.gateway.hang_up_all()
    assert len(list(bell)) <= 2


def look(rig, client, site, node_id):
    """Ask SuperLink, as the site, for a message; there is none."""
    rig.answer = lambda method, body: (200, b"")
    body = PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()
    assert client.tunnel("PULL_MESSAGES", body, **rig.signed(site)) == (200, b"")


def test_a_ring_says_how_many_messages_came_as_far_as_is_known(rig):
    client = rig.admit("cesga", 7)
    bell = client.listen()
    assert next(bell).messages == 0  # nobody knows what waited before
    rig.gateway.ring("cesga")
    assert next(bell).messages == 1
    for _ in range(3):  # the site has not looked yet
        rig.gateway.ring("cesga")
    look(rig, client, "cesga", 7)
    assert next(bell).messages == 3


def test_sites_ring_in_turn_and_one_that_does_not_look_holds_up_nobody_for_long(rig):
    sites = [f"site-{number}" for number in range(AT_ONCE + 2)]
    clients = [rig.admit(site, node_id) for node_id, site in enumerate(sites)]
    heard = queue.SimpleQueue()

    def listen(site, bell):
        for ring in bell:
            if ring.messages:
                heard.put(site)

    listeners = []
    for site, client in zip(sites, clients, strict=True):
        bell = client.listen()
        next(bell)
        listeners.append(threading.Thread(target=listen, args=(site, bell)))
        listeners[-1].start()
    try:
        for site in sites:
            rig.gateway.ring(site)
        assert {heard.get(timeout=HANG_S) for _ in range(AT_ONCE)} == set(sites[:AT_ONCE])
        look(rig, clients[0], sites[0], 0)
        assert heard.get(timeout=HANG_S) == sites[AT_ONCE]
        with prompt(5 * PATIENCE_S):  # nobody looked: its turn all the same
            assert heard.get(timeout=HANG_S) == sites[AT_ONCE + 1]
    finally:
        rig.gateway.hang_up_all()
        for listener in listeners:
            listener.join(HANG_S)


def test_ringing_where_nobody_listens_is_no_error(rig):
    rig.gateway.ring("nobody")


def test_the_latest_stream_replaces_the_older(rig):
    client = rig.admit("cesga", 7)
    older = client.listen()
    next(older)
    newer = rig.client(rig.enrol(Role.SITE, "cesga")).listen()
    next(newer)
    assert list(older) == []  # it ends; it does not fail
    rig.gateway.ring("cesga")
    next(newer)
    assert rig.gateway.connected() == ["cesga"]
    # a site that came back is said to be connected again, and was never lost
    assert rig.ear.heard == [("came", "cesga")] * 2


def test_hanging_up_is_noticed(rig):
    client = rig.admit("cesga", 7)
    bell = client.listen()
    next(bell)
    client.close()
    until(lambda: rig.ear.heard == [("came", "cesga"), ("went", "cesga")])
    assert rig.gateway.connected() == []


def test_the_agent_notices_when_the_gateway_goes(rig):
    bell = rig.admit("cesga", 7).listen()
    next(bell)
    rig.gateway.stop()
    assert list(bell) == []
    with pytest.raises(EnvironmentFailedError):
        next(rig.client(rig.enrol(Role.SITE, "cesga")).listen())


def test_a_site_cannot_take_all_the_threads(rig):
    rig.admit("cesga", 7)
    other = rig.admit("lumi", 8)
    ref = rig.offer("cesga", bytes(64 * 1024 * 1024))
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        calls = GatewayCalls(channel)
        request = pb.DownloadRequest(digest=ref.digest)
        parked = [calls.download(request) for _ in range(LIMITS.open_calls)]
        for stream in parked:
            next(stream)
        with pytest.raises(grpc.RpcError) as refused:
            next(calls.download(request))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        next(other.listen())  # nobody else suffers
        for stream in parked:
            stream.cancel()
        until(lambda: rig.gateway._door.calls.count(CESGA) == 0)
        next(calls.download(request))


def test_a_hundred_waiting_sites_cost_nothing(rig):
    clients = [rig.admit(f"site-{i}", i + 2) for i in range(100)]
    bells = [client.listen() for client in clients]
    for bell in bells:
        next(bell)
    assert len(rig.gateway.connected()) == 100

    used = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(1.0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    busy_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    assert busy_s < 0.5, f"{busy_s:.2f} s of processor in one idle second"

    for i in range(100):
        rig.gateway.ring(f"site-{i}")
    for i, (client, bell) in enumerate(zip(clients, bells, strict=True)):
        next(bell)
        look(rig, client, f"site-{i}", i + 2)
