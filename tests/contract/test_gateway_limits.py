"""Nobody can take more of the gateway than is theirs: rates, slowness, silence."""

import math
import threading
import time
from dataclasses import replace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfactory.contracts.versions import own_version
from fedfactory.coordinator.gateway import limits
from fedfactory.coordinator.gateway.limits import RATES, Rate, RateLimiter
from fedfactory.coordinator.gateway.offers import LENT_PER_PEER, Offers
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import GATEWAY, METHODS
from fedfactory.wire.rpc.pieces import BlobReference, upload_to_wire
from fedfactory.wire.rpc.service import VERSION
from fedfactory.wire.tls import open_channel
from tests.contract.gateway_rig import LIMITS, MIB, open_rig, ref_of
from tests.patience import HANG_S, until

SAID = ((VERSION, own_version()),)
CESGA = Peer(role=Role.SITE, name="cesga")
IMPATIENT = replace(
    LIMITS, message_within_s=0.5, slow_after_s=1.0, slowest_bytes_per_s=4 * MIB, open_calls=8
)


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path, limits=IMPATIENT) as rig:
        rig.admit("cesga")
        yield rig


def test_every_kind_of_call_has_a_rate():
    assert set(RATES) == {method.kind for method in METHODS}


@given(
    burst=st.integers(1, 20),
    per_s=st.floats(0.1, 100),
    gaps=st.lists(st.floats(-1, 5), max_size=60),
)
def test_no_more_passes_in_any_window_than_burst_and_rate_allow(burst, per_s, gaps):
    rates = {"order": Rate(burst=burst, per_s=per_s)}
    limiter, now, latest, passed = RateLimiter(rates), 0.0, -math.inf, []
    for gap in gaps:
        now += gap  # a clock that jumps back earns nothing
        latest = max(latest, now)
        if limiter.admits("a", "order", now):
            passed.append(latest)
    for first, start in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + (passed[last] - start) * per_s + 1e-6


def test_a_peer_gets_its_burst_and_then_its_rate_whatever_others_do():
    limiter = RateLimiter({"order": Rate(burst=3, per_s=1), "renew": Rate(burst=1, per_s=1)})
    assert [limiter.admits("a", "order", 0.0) for _ in range(4)] == [True, True, True, False]
    assert limiter.admits("b", "order", 0.0)
    assert limiter.admits("a", "renew", 0.0)
    assert [limiter.admits("a", "order", 1.0) for _ in range(2)] == [True, False]


def test_the_buckets_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(limits, "MOST_BUCKETS", 10)
    limiter = RateLimiter(RATES)
    for number in range(100):
        limiter.admits(f"peer-{number}", "order", 0.0)
    assert len(limiter._buckets) == 10


def test_loans_do_not_pile_up(tmp_path):
    offers = Offers()
    for number in range(100):
        offers.lend("ana", f"d{number}", tmp_path / str(number))
    assert [offers.lent("ana", f"d{n}") is None for n in (0, 100 - LENT_PER_PEER - 1, 99)] == [
        *(True, True, False),
    ]
    assert offers.lent("bob", "d99") is None


def test_a_call_without_its_message_is_ended(rig):
    """All methods: headers alone must not keep a thread."""
    go_on = threading.Event()

    def nothing():
        go_on.wait(HANG_S)
        yield b""

    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        mine = [m for m in METHODS if Role.SITE in m.roles][: IMPATIENT.open_calls]
        calls = [
            channel.stream_stream(method.path)(nothing(), metadata=SAID, timeout=HANG_S)
            for method in mine
        ]
        until(lambda: rig.gateway._door.calls.count(CESGA) == len(mine))
        until(lambda: rig.gateway._door.calls.count(CESGA) == 0, 5)
        for call in calls:
            with pytest.raises(grpc.RpcError) as ended:
                list(call)
            assert ended.value.code() is grpc.StatusCode.CANCELLED
        go_on.set()


def test_an_upload_that_trickles_is_ended_and_what_came_is_kept(rig):
    stop = threading.Event()
    data = bytes(16 * MIB)
    ref = ref_of(data)

    def trickle():
        yield BlobReference(digest=ref.digest, bytes=ref.bytes)
        for _ in range(100):
            yield bytes(1000)
            if stop.wait(0.05):
                return

    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        call = channel.stream_unary(f"/{GATEWAY}/Upload", upload_to_wire)
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as ended:
            call(trickle(), metadata=SAID, timeout=HANG_S)
        stop.set()
    assert ended.value.code() is grpc.StatusCode.CANCELLED
    assert time.monotonic() - began < 6
    until(lambda: rig.gateway._door.calls.count(CESGA) == 0)
    assert 0 < rig.store.arrived(CESGA, ref) < 200_000


def test_a_download_that_nobody_reads_is_ended(rig):
    ref = rig.offer("cesga", bytes(128 * MIB))
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        call = channel.unary_stream(f"/{GATEWAY}/Download", pb.DownloadRequest.SerializeToString)(
            pb.DownloadRequest(digest=ref.digest), metadata=SAID, timeout=HANG_S
        )
        next(call)
        until(lambda: rig.gateway._door.calls.count(CESGA) == 0, 10)
        with pytest.raises(grpc.RpcError):
            list(call)


def test_a_doorbell_may_be_silent_for_as_long_as_it_likes(rig):
    bell = rig.client(rig.enrol(Role.SITE, "cesga")).listen()
    next(bell)
    time.sleep(2.5)
    rig.gateway.ring("cesga")
    next(bell)
