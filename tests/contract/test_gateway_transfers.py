"""Arrays both ways, from disk to disk: whole or not at all, whatever the other end does."""

import os
import re
import subprocess
import sys
import threading
from itertools import chain

import grpc
import pytest
from gateway_rig import MIB, Relay, eventually, open_rig, ref_of

from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError, ProtocolError
from fedfactory.identity.roles import Role
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.pieces import (
    PIECE_BYTES,
    BlobReference,
    piece_from_wire,
    piece_to_wire,
    upload_from_wire,
    upload_to_wire,
)
from fedfactory.wire.rpc.service import GatewayCalls
from fedfactory.wire.tls import open_channel
from site_agents import gateway_client
from site_agents.blob_cache import KEEP, BlobCache
from site_agents.gateway_client import GatewayClient

DATA = os.urandom(5 * MIB + 123)
REF = ref_of(DATA)


@pytest.fixture
def rig(tmp_path, monkeypatch):
    monkeypatch.setattr(gateway_client, "FIRST_PAUSE_S", 0.001)
    with open_rig(tmp_path) as rig:
        rig.site = rig.admit("cesga", 7)
        yield rig


@pytest.fixture
def calls(rig):
    """The bare protocol, for what our own client would never send."""
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        yield GatewayCalls(channel)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "update.safetensors"
    path.write_bytes(DATA)
    return path


# ---- the wire form ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, PIECE_BYTES])
def test_pieces_have_the_form_that_the_proto_file_says(size):
    data = os.urandom(size)
    if size:
        assert piece_to_wire(data) == pb.Piece(data=data).SerializeToString()
    assert pb.Piece.FromString(piece_to_wire(data)).data == data
    assert bytes(piece_from_wire(pb.Piece(data=data).SerializeToString())) == data
    assert upload_to_wire(data) == pb.UploadPiece(data=data).SerializeToString()
    assert bytes(upload_from_wire(pb.UploadPiece(data=data).SerializeToString())) == data


def test_a_reference_survives_the_wire():
    ref = BlobReference(digest="sha256:" + "a" * 64, bytes=5)
    assert upload_to_wire(ref) == pb.UploadPiece(reference=ref).SerializeToString()
    assert upload_from_wire(upload_to_wire(ref)) == ref


@pytest.mark.parametrize(
    "message",
    [b"", b"\x12", b"\x12\x05abc", b"\x12\x80\x80\x80", b"\xff\xff", b"\x0a\x03\x12\x09x"],
)
def test_other_messages_are_not_taken_for_bytes(message):
    from google.protobuf.message import DecodeError

    with pytest.raises(DecodeError):
        upload_from_wire(message)


def test_what_protobuf_reads_otherwise_is_read_as_protobuf_does():
    twice = pb.Piece(data=b"one").SerializeToString() + pb.Piece(data=b"two").SerializeToString()
    assert piece_from_wire(twice) == pb.Piece.FromString(twice).data == b"two"


# ---- down ------------------------------------------------------------------------------------


def test_an_offered_blob_arrives(rig, tmp_path):
    ref = rig.offer("cesga", DATA)
    rig.site.download(ref, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA
    assert not (tmp_path / ".model.part").exists()
    assert rig.gateway.traffic()["cesga"] == {"down": len(DATA), "up": 0}


def test_an_empty_blob_arrives(rig, tmp_path):
    rig.site.download(rig.offer("cesga", b""), tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == b""


def test_only_what_was_offered_to_this_site_and_is_still_there(rig, tmp_path):
    ref = rig.offer("lumi", DATA)
    with pytest.raises(ProtocolError) as refused:
        rig.site.download(ref, tmp_path / "model")
    assert "offered" in refused.value.diagnostic
    rig.gateway.offer("cesga", ref.digest)
    rig.gateway.discard(ref.digest)
    with pytest.raises(ProtocolError):
        rig.site.download(ref, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def raw_download(rig, digest):
    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        list(GatewayCalls(channel).download(pb.DownloadRequest(digest=digest), timeout=10))


def test_a_site_does_not_learn_what_another_has(rig):
    """Absent, not offered and malformed digests are answered alike."""
    theirs = rig.offer("lumi", DATA).digest
    answers = set()
    for digest in (theirs, "sha256:" + "0" * 64, "../../etc/passwd", ""):
        with pytest.raises(grpc.RpcError) as refused:
            raw_download(rig, digest)
        answers.add((refused.value.code(), refused.value.details()))
    assert len(answers) == 1


def test_a_cut_download_goes_on_where_it_was(rig, tmp_path):
    ref = rig.offer("cesga", DATA)
    (tmp_path / ".model.part").write_bytes(DATA[: 3 * MIB])
    rig.site.download(ref, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA
    assert rig.gateway.traffic()["cesga"]["down"] == len(DATA) - 3 * MIB


@pytest.mark.parametrize("leftover", [b"x" * 100, DATA + b"x", DATA[:-1] + b"?", DATA])
def test_any_leftover_ends_in_the_right_bytes(rig, tmp_path, leftover):
    ref = rig.offer("cesga", DATA)
    (tmp_path / ".model.part").write_bytes(leftover)
    rig.site.download(ref, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA


def test_a_line_that_breaks_resumes(rig, tmp_path):
    """Through a relay that cuts its first connections in the middle of a transfer."""
    data = os.urandom(20 * MIB)
    ref = rig.offer("cesga", data)
    with Relay(rig.port, cut_after=[6 * MIB, 6 * MIB]) as relay:
        client = GatewayClient(f"127.0.0.1:{relay.port}", rig.enrol(Role.SITE, "cesga"))
        client.download(ref, tmp_path / "model")
        client.close()
    assert (tmp_path / "model").read_bytes() == data
    assert relay.cuts_made == 2
    # what was under way is sent again, what had arrived is not
    assert relay.carried < len(data) + 2 * 5 * MIB


def test_an_altered_blob_is_never_put_in_place(rig, tmp_path):
    ref = rig.offer("cesga", DATA)
    path = rig.store.path(ref.digest)
    altered = bytearray(DATA)
    altered[4 * MIB] ^= 1
    path.write_bytes(altered)
    with pytest.raises(IntegrityError, match="altered 4 times"):
        rig.site.download(ref, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    path.write_bytes(DATA)
    rig.site.download(ref, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA


@pytest.mark.parametrize("found", [DATA[:-5], DATA + b"more", b""])
def test_a_blob_of_another_length_is_refused(rig, tmp_path, found):
    ref = rig.offer("cesga", DATA)
    rig.store.path(ref.digest).write_bytes(found)
    with pytest.raises(IntegrityError):
        rig.site.download(ref, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_alteration_that_goes_away_is_got_over(rig, tmp_path, monkeypatch):
    ref = rig.offer("cesga", DATA)
    real = rig.site._calls.download
    first = iter([True])

    def once_altered(request, timeout):
        altered = next(first, False)
        for piece in real(request, timeout=timeout):
            yield bytes(len(piece)) if altered else piece

    monkeypatch.setattr(rig.site._calls, "download", once_altered)
    rig.site.download(ref, tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == DATA


def test_a_gateway_that_is_gone_is_said_in_time(rig, tmp_path):
    ref = rig.offer("cesga", DATA)
    rig.gateway.stop()
    with pytest.raises(EnvironmentFailedError):
        rig.site.download(ref, tmp_path / "model")
    with pytest.raises(EnvironmentFailedError):
        rig.site.tunnel("PULL_MESSAGES", b"", **rig.signed("cesga"))


# ---- up --------------------------------------------------------------------------------------


def test_an_update_is_stored_by_its_digest(rig, file):
    rig.site.upload(file, REF)
    assert rig.store.path(REF.digest).read_bytes() == DATA
    assert rig.store.claim("cesga", REF.digest)
    assert rig.gateway.traffic()["cesga"] == {"down": 0, "up": len(DATA)}


def test_equal_updates_are_sent_by_each_site(rig, file):
    """Skipping what is there would tell a site that another has sent the same."""
    rig.site.upload(file, REF)
    rig.admit("lumi", 8).upload(file, REF)
    assert rig.gateway.traffic()["lumi"]["up"] == len(DATA)


def test_an_upload_is_no_offer(rig, file, tmp_path):
    rig.site.upload(file, REF)
    with pytest.raises(ProtocolError):
        rig.site.download(REF, tmp_path / "back")


def test_the_client_refuses_a_file_that_is_not_its_reference(rig, file):
    file.write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match=f"expected {len(DATA)}"):
        rig.site.upload(file, REF)


def test_an_update_altered_on_disk_is_refused_each_time(rig, file):
    file.write_bytes(bytes(len(DATA)))
    with pytest.raises(IntegrityError, match="other bytes"):
        rig.site.upload(file, REF)
    assert not rig.store.path(REF.digest).exists()
    assert rig.gateway.traffic()["cesga"]["up"] == 4 * len(DATA)


def test_an_upload_that_breaks_is_sent_again_whole(rig, file, monkeypatch):
    real = rig.site._calls.upload
    breaks = iter([True])

    def broken_once(parts, timeout):
        return real(chain(cut_after(parts, 2) if next(breaks, False) else parts), timeout=timeout)

    monkeypatch.setattr(rig.site._calls, "upload", broken_once)
    rig.site.upload(file, REF)
    assert rig.store.path(REF.digest).read_bytes() == DATA


def cut_after(parts, count):
    for _, part in zip(range(count), parts, strict=False):
        yield part


REFERENCE = BlobReference(digest=REF.digest, bytes=REF.bytes)


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([], "INVALID_ARGUMENT"),
        ([DATA], "INVALID_ARGUMENT"),
        ([REFERENCE], "DATA_LOSS"),
        ([REFERENCE, DATA[:-1]], "DATA_LOSS"),
        ([REFERENCE, DATA, b"x"], "DATA_LOSS"),
        ([REFERENCE, bytes(len(DATA))], "DATA_LOSS"),
        ([REFERENCE, REFERENCE, DATA], "INVALID_ARGUMENT"),
        ([BlobReference(digest="sha256:../x", bytes=1), b"x"], "INVALID_ARGUMENT"),
        ([BlobReference(digest=REF.digest, bytes=1 << 40), DATA], "INVALID_ARGUMENT"),
    ],
)
def test_anything_but_reference_then_its_bytes_is_refused(rig, calls, parts, code):
    with pytest.raises(grpc.RpcError) as refused:
        calls.upload(iter(parts), timeout=10)
    assert refused.value.code().name == code
    assert not list(rig.store.root.iterdir())


def test_no_upload_before_the_run_says_how_long_one_may_be(rig, file):
    rig.gateway.limit_uploads(0)
    with pytest.raises(ProtocolError) as refused:
        rig.site.upload(file, REF)
    assert "0 bytes" in refused.value.diagnostic


def test_an_aborted_upload_leaves_nothing(rig, calls):
    started, go_on = threading.Event(), threading.Event()

    def parts():
        yield REFERENCE
        yield DATA[:MIB]
        started.set()
        go_on.wait(10)

    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        call = channel.stream_unary("/fedfactory.v1.Gateway/Upload", upload_to_wire).future(parts())
        assert started.wait(10)
        eventually(lambda: list(rig.store.root.glob(".*.part")))
        call.cancel()
        go_on.set()
    eventually(lambda: not list(rig.store.root.iterdir()))


def test_a_hanging_upload_gives_way_to_the_next(rig, file):
    started, go_on = threading.Event(), threading.Event()

    def parts():
        yield REFERENCE
        yield DATA[:MIB]
        started.set()
        go_on.wait(10)

    with open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as channel:
        call = channel.stream_unary("/fedfactory.v1.Gateway/Upload", upload_to_wire).future(parts())
        assert started.wait(10)
        eventually(lambda: list(rig.store.root.glob(".*.part")))
        rig.site.upload(file, REF)
        assert call.exception(timeout=10) is not None
        go_on.set()
    eventually(lambda: not list(rig.store.root.glob(".*.part")))
    assert rig.store.path(REF.digest).read_bytes() == DATA


# ---- the site's cache ------------------------------------------------------------------------


def fetched(cache, ref):
    with cache.fetch(ref) as path:
        return path.read_bytes()


def test_each_array_set_is_fetched_once(rig, tmp_path):
    ref = rig.offer("cesga", DATA)
    cache = BlobCache(tmp_path / "cache", rig.site)
    assert fetched(cache, ref) == DATA
    assert fetched(cache, ref) == DATA
    again = BlobCache(tmp_path / "cache", rig.site)
    assert fetched(again, ref) == DATA
    assert rig.gateway.traffic()["cesga"]["down"] == len(DATA)


def test_a_cached_file_torn_by_a_crash_is_fetched_again(rig, tmp_path):
    ref = rig.offer("cesga", DATA)
    assert fetched(BlobCache(tmp_path / "cache", rig.site), ref) == DATA
    (path,) = (tmp_path / "cache").iterdir()
    for torn in (b"", DATA[:-1], bytes(len(DATA))):
        path.write_bytes(torn)
        assert fetched(BlobCache(tmp_path / "cache", rig.site), ref) == DATA


def test_the_newest_few_are_kept(rig, tmp_path):
    cache = BlobCache(tmp_path / "cache", rig.site)
    (tmp_path / "cache" / ".dead.part").write_bytes(b"cut, and never asked for again")
    refs = [rig.offer("cesga", bytes([i]) * 100) for i in range(5)]
    for ref in refs:
        fetched(cache, ref)
        fetched(cache, refs[0])
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    assert kept == {r.digest.removeprefix("sha256:") for r in (refs[0], refs[-1])}
    assert len(kept) == KEEP


def test_a_model_stays_as_long_as_a_job_waits_with_it(rig, tmp_path):
    cache = BlobCache(tmp_path / "cache", rig.site)
    refs = [rig.offer("cesga", bytes([i]) * 100) for i in range(5)]
    with cache.fetch(refs[0]) as path:
        for ref in refs[1:]:
            fetched(cache, ref)
        assert path.read_bytes() == bytes([0]) * 100
    fetched(cache, refs[1])
    fetched(cache, refs[2])
    assert not path.exists()


# ---- memory ----------------------------------------------------------------------------------

AGENT = """
import sys
from pathlib import Path
from fedfactory.contracts.model import BlobRef
from fedfactory.identity.enrolment import load_identity
from site_agents.gateway_client import GatewayClient

address, identity, into, *blobs = sys.argv[1:]
client = GatewayClient(address, load_identity(Path(identity)))
for blob in blobs:
    digest, length = blob.split(",")
    ref = BlobRef(digest=digest, bytes=int(length))
    client.download(ref, Path(into))
    client.upload(Path(into), ref)
    peak = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
    print(peak.split()[1])
client.close()
"""


def test_the_clients_memory_does_not_follow_the_blobs_size(rig, tmp_path):
    refs = [rig.offer("cesga", os.urandom(size * MIB)) for size in (40, 200)]
    blobs = [f"{ref.digest},{ref.bytes}" for ref in refs]
    identity = tmp_path / "identity-site-cesga"
    out = subprocess.run(
        [sys.executable, "-c", AGENT, rig.address, identity, tmp_path / "model", *blobs],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    small, large = (int(line) / 1024 for line in re.findall(r"\d+", out))
    # gRPC holds up to some 90 MiB in flight where the other end is faster. A client that held the
    # blob would hold 160 MiB more of the larger one; how much it is today is the benchmark's.
    assert large - small < 130, f"{small:.0f} MiB for 40 MiB, {large:.0f} MiB for 200 MiB"
