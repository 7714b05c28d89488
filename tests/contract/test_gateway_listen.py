"""The doorbell: heard at once, replaced by the latest stream, cheap when many wait."""

import resource
import threading
import time

import grpc
import pytest

from fedfactory.contracts.errors import EnvironmentFailedError
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
    bell = rig.admit("cesga").listen()
    next(bell)
    assert rig.gateway.connected() == ["cesga"]
    assert rig.ear.heard == [("came", "cesga")]


def test_a_ring_is_heard_at_once_and_by_its_site_alone(rig):
    mine, theirs = rig.admit("cesga").listen(), rig.admit("lumi").listen()
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
    bell = rig.admit("cesga").listen()
    next(bell)
    for _ in range(10_000):
        rig.gateway.ring("cesga")
    rig.gateway._bells.hang_up_all()
    assert len(list(bell)) <= 2


def test_ringing_where_nobody_listens_is_no_error(rig):
    rig.gateway.ring("nobody")


def test_the_latest_stream_replaces_the_older(rig):
    client = rig.admit("cesga")
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
    client = rig.admit("cesga")
    bell = client.listen()
    next(bell)
    client.close()
    until(lambda: rig.ear.heard == [("came", "cesga"), ("went", "cesga")])
    assert rig.gateway.connected() == []


def test_the_agent_notices_when_the_gateway_goes(rig):
    bell = rig.admit("cesga").listen()
    next(bell)
    rig.gateway.stop()
    assert list(bell) == []
    with pytest.raises(EnvironmentFailedError):
        next(rig.client(rig.enrol(Role.SITE, "cesga")).listen())


def test_a_site_cannot_take_all_the_threads(rig):
    rig.admit("cesga")
    other = rig.admit("lumi")
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
    sites = [f"site-{i}" for i in range(100)]
    clients, run = [rig.admit(site) for site in sites], rig.run(*sites)
    bells = [client.listen() for client in clients]
    for bell in bells:
        next(bell)
    assert len(rig.gateway.connected()) == 100

    used = resource.getrusage(resource.RUSAGE_SELF)
    time.sleep(1.0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    busy_s = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    assert busy_s < 0.5, f"{busy_s:.2f} s of processor in one idle second"

    for site in sites:
        run.order(site, f"for {site}")
    for site, client, bell in zip(sites, clients, bells, strict=True):
        next(bell)
        assert client.fetch().text == f"for {site}"
