"""A hostile member at the gateway: whatever it sends, no crash, no growth, the right status."""

import contextlib
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.versions import own_version
from fedfactory.coordinator.gateway import gateway
from fedfactory.coordinator.gateway.limits import RATES, GatewayLimits, Rate
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import BY_PATH, METHODS, OPERATIONS
from fedfactory.wire.rpc.pieces import BlobReference, piece_from_wire, upload_from_wire
from fedfactory.wire.rpc.service import VERSION, GatewayCalls
from fedfactory.wire.tls import SERVER_OPTIONS, open_channel
from tests.contract.gateway_rig import MIB, open_rig, ref_of
from tests.contract.test_gateway_access import WHO, WISHES
from tests.patience import HANG_S, prompt, until

SAID = ((VERSION, own_version()),)
TAME = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,
}
# The fuzzing itself is not to be held back.
UNRATED = GatewayLimits(
    max_model_bytes=64 * MIB, rates={kind: Rate(burst=1e9, per_s=1e9) for kind in RATES}
)
DATA = os.urandom(1000)


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path, limits=UNRATED) as rig:
        rig.desk.watches_until.set()
        rig.admit("cesga")
        rig.offer("cesga", DATA)
        rig.mail = rig.run("cesga", "lumi")
        yield rig


def genuine(rig):
    """A good message of each method, to be mutated."""
    ref = ref_of(DATA)
    messages = {
        "FetchOrder": pb.FetchRequest(),
        "SendReply": pb.SiteReply(
            message_id=fetched(rig, "cesga"), text=b'{"work":null}', digest=ref.digest
        ),
        "Download": pb.DownloadRequest(digest=ref.digest, offset=5),
        "Arrived": BlobReference(digest=ref.digest, bytes=ref.bytes),
        "Upload": pb.UploadPiece(reference=BlobReference(digest=ref.digest, bytes=ref.bytes)),
        "Listen": pb.ListenRequest(),
        "Answer": pb.SiteAnswer(question_id="q", answer=b'{"preflight":null,"logs":null}'),
    }
    made = {m.path: messages[m.name].SerializeToString() for m in METHODS if m.name in messages}
    for name, wish in WISHES.items():
        path = f"/{OPERATIONS}/" + "".join(word.capitalize() for word in name.split("_"))
        made[path] = BY_PATH[path].request.to_wire(wish)
    return made


def fetched(rig, site):
    """An order that the site has, to be answered."""
    sent = rig.mail.order(site)
    assert rig.calls(site).fetch_order(pb.FetchRequest(), timeout=HANG_S).message_id == sent
    return sent


def mutated(message, random_):
    """Flip, cut, double, insert."""
    body = bytearray(message or b"\x0a\x00")
    for _ in range(random_.randint(1, 8)):
        at = random_.randrange(len(body) + 1)
        match random_.randrange(4):
            case 0 if at < len(body):
                body[at] ^= 1 << random_.randrange(8)
            case 1:
                del body[at : at + random_.randrange(10)]
            case 2:
                body[at:at] = random_.randbytes(random_.randrange(12))
            case _:
                body[at:at] = body[: random_.randrange(40)]
    return bytes(body)


def usage():
    status = Path("/proc/self/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return len(os.listdir("/proc/self/fd")), threading.active_count(), rss


def send(channel, method, messages):
    """Send raw messages; return the status, and leave a stream after its first answer."""
    call = channel.stream_stream(method.path)(iter(messages), metadata=SAID, timeout=HANG_S)
    try:
        for _ in call:
            call.cancel()
            return grpc.StatusCode.OK
    except grpc.RpcError as error:
        told = error
    else:
        return grpc.StatusCode.OK
    assert "Traceback" not in told.details()
    assert "Exception" not in told.details()
    return told.code()


@pytest.mark.parametrize("seed", range(2))
def test_random_and_mutated_messages_at_every_method(rig, seed):
    chance = random.Random(seed)
    good = genuine(rig)
    with contextlib.ExitStack() as stack:
        channels = {
            role: stack.enter_context(open_channel(rig.address, rig.enrol(role, name)))
            for role, name in WHO.items()
        }
        for count in range(40):
            if count == 10:
                before = usage()
            for method in METHODS:
                role = chance.choice(sorted(method.roles) if chance.random() < 0.9 else [*WHO])
                messages = [
                    mutated(good.get(method.path, b""), chance)
                    if chance.random() < 0.7
                    else chance.randbytes(chance.randrange(300))
                    for _ in range(chance.choice((1, 1, 1, 0, 3)))
                ]
                code = send(channels[role], method, messages)
                assert code in TAME, (method.path, code, messages)
        after = usage()
    until(lambda: not rig.gateway._door.calls._calls)
    assert after[0] - before[0] < 20, "open files"
    assert after[2] - before[2] < 60 * 1024, "kB of memory"
    client = rig.client(rig.enrol(Role.SITE, "cesga"))
    next(client.listen())  # and it still serves
    sent = fetched(rig, "cesga")
    assert client.send(sent, "done", "")
    until(lambda: (sent, "done", None) in rig.mail.replies)


def test_a_replayed_reply_proves_nothing_for_another_site(rig):
    """What cesga sends, sent by lumi, word for word: before and after."""
    rig.admit("lumi")
    sent = fetched(rig, "cesga")
    body = pb.SiteReply(message_id=sent, text=b"mine").SerializeToString()
    method = BY_PATH["/fedfactory.v1.Gateway/SendReply"]
    with (
        open_channel(rig.address, rig.enrol(Role.SITE, "cesga")) as mine,
        open_channel(rig.address, rig.enrol(Role.SITE, "lumi")) as theirs,
    ):
        assert send(theirs, method, [body]) is grpc.StatusCode.PERMISSION_DENIED
        assert send(mine, method, [body]) is grpc.StatusCode.OK
        reply = pb.SiteReply.FromString(body)
        assert not rig.calls("lumi").send_reply(reply, timeout=HANG_S).awaited
    until(lambda: rig.mail.replies)
    assert rig.mail.replies == [(sent, "mine", None)]


SENDER = """
import sys
from pathlib import Path
import grpc
from fedfactory.contracts.versions import own_version
from fedfactory.identity.enrolment import load_identity
from fedfactory.wire.rpc.service import VERSION
from fedfactory.wire.tls import channel_credentials

address, identity, path = sys.argv[1:]
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
mine = channel_credentials(load_identity(Path(identity)))
with grpc.secure_channel(address, mine, OPTIONS) as channel:
    call = channel.stream_stream(path)
    for _ in range(6):
        try:
            list(call(iter([bytes(20 << 20)]), metadata=((VERSION, own_version()),), timeout=120))
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error
        else:
            raise AssertionError("taken")
"""


def test_oversized_messages_stop_at_the_door(rig, tmp_path):
    """gRPC reads their length and no more; the sender is another process, so the memory is ours.

    It has no limit of its own: with one it would refuse by itself, and nothing would be tested.
    """
    folder = rig.save(rig.enrol(Role.SITE, "cesga"), tmp_path / "cesga")
    before = usage()
    for path in ("/fedfactory.v1.Gateway/SendReply", "/fedfactory.v1.Gateway/Upload"):
        subprocess.run(
            [sys.executable, "-c", SENDER, rig.address, folder, path], check=True, timeout=HANG_S
        )
    assert usage()[2] - before[2] < 80 * 1024, "kB of memory, of the 240 MB that were sent"


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.path)
@given(message=st.binary(max_size=200))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_parser_reads_or_refuses(method, message):
    with contextlib.suppress(ProtocolError):
        method.request.from_wire(message)
    with contextlib.suppress(ProtocolError):
        method.answer.from_wire(message)


@given(message=st.binary(max_size=200))
def test_pieces_are_read_as_protobuf_reads_them(message):
    try:
        expected = pb.Piece.FromString(message).data
    except DecodeError:
        with pytest.raises(DecodeError):
            piece_from_wire(message)
    else:
        assert bytes(piece_from_wire(message)) == expected
    try:
        part = pb.UploadPiece.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            upload_from_wire(message)
    else:
        kind = part.WhichOneof("part")
        if kind is None:
            with pytest.raises(DecodeError):
                upload_from_wire(message)
        else:
            found = upload_from_wire(message)
            assert found == part.reference if kind == "reference" else bytes(found) == part.data


# ---- connections -----------------------------------------------------------------------------


def client_context(rig, folder):
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    context.load_cert_chain(folder / "certificate.pem", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_connections_come_and_go(rig, tmp_path, count):
    folder = rig.save(rig.enrol(Role.SITE, "cesga"), tmp_path / "cesga")
    context = client_context(rig, folder)
    before = usage()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", rig.port), 20))
            secure = context.wrap_socket(plain, server_hostname="127.0.0.1")
            stack.callback(secure.close)
            secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + random.Random(0).randbytes(50))
        next(rig.client(rig.enrol(Role.SITE, "cesga")).listen())
    until(lambda: usage()[0] - before[0] < 20, 30)
    after = usage()
    assert after[1] - before[1] < 20, "threads"
    assert after[2] - before[2] < 150 * 1024, "kB of memory"


def test_who_says_nothing_or_nonsense_is_let_go(tmp_path, monkeypatch):
    """With the gateway's own options, but for the length of its patience."""
    patience = "grpc.server_handshake_timeout_ms"
    assert dict(SERVER_OPTIONS)[patience] <= 10_000
    hasty = tuple((key, 1000 if key == patience else value) for key, value in SERVER_OPTIONS)
    monkeypatch.setattr(gateway, "SERVER_OPTIONS", hasty)
    with open_rig(tmp_path) as rig:
        rig.admit("cesga")
        _knock(rig)


def _knock(rig):
    silent = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(20)]
    rude = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(20)]
    for one in rude:
        one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        one.settimeout(HANG_S)
        with contextlib.suppress(ConnectionError):
            while one.recv(1000):
                pass
    next(rig.client(rig.enrol(Role.SITE, "cesga")).listen())
    with prompt(5):
        for one in silent:
            one.settimeout(HANG_S)
            with contextlib.suppress(ConnectionError):
                assert one.recv(1000) == b""  # the handshake's time is up
    for one in silent + rude:
        one.close()


def test_calls_of_many_members_at_once(rig):
    rig.desk.watches_until.clear()
    identities = [rig.enrol(Role.SITE, f"site-{i}") for i in range(20)]
    before, bells = usage(), []
    with contextlib.ExitStack() as stack:
        for identity in identities:
            channel = stack.enter_context(open_channel(rig.address, identity))
            streams = [GatewayCalls(channel).listen(pb.ListenRequest()) for _ in range(5)]
            for stream in streams:
                next(stream)
            bells += streams
        assert len(rig.gateway.connected()) == 20
        until(lambda: len(list_open(rig)) == 20)  # the latest of each counts
    until(lambda: not rig.gateway._door.calls._calls)
    until(lambda: usage()[0] - before[0] < 20)


def list_open(rig):
    return [call for calls in list(rig.gateway._door.calls._calls.values()) for call in calls]


# ---- TLS, as openssl sees it -----------------------------------------------------------------

OPENSSL = shutil.which("openssl")


def s_client(rig, *options, folder=None):
    identity = ["-cert", folder / "certificate.pem", "-key", folder / "tls.key"] if folder else []
    return subprocess.run(
        [
            OPENSSL,
            "s_client",
            "-connect",
            f"127.0.0.1:{rig.port}",
            "-alpn",
            "h2",
            *identity,
            *options,
        ],
        input=b"",
        capture_output=True,
        timeout=HANG_S,
        check=False,
    )


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
def test_what_openssl_can_negotiate(rig, tmp_path):
    folder = rig.save(rig.enrol(Role.SITE, "cesga"), tmp_path / "cesga")
    best = s_client(rig, folder=folder).stdout
    assert b"TLSv1.3" in best
    for suite in ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"):
        found = s_client(rig, "-tls1_2", "-cipher", suite, folder=folder)
        assert f"Cipher is {suite}".encode() in found.stdout
    weak = ("ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256", "aNULL")
    for suite in weak:
        found = s_client(rig, "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0", folder=folder)
        assert b"Cipher is (NONE)" in found.stdout or found.returncode != 0, suite
    for old in ("-tls1", "-tls1_1"):
        found = s_client(rig, old, "-cipher", "ALL:@SECLEVEL=0", folder=folder)
        assert b"Cipher is (NONE)" in found.stdout or found.returncode != 0, old


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_without_a_certificate_nothing_is_heard(rig, tmp_path, version):
    """TLS 1.2 refuses it in the handshake, 1.3 right after."""
    folder = rig.save(rig.enrol(Role.SITE, "cesga"), tmp_path / "cesga")
    anonymous = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    anonymous.set_alpn_protocols(["h2"])
    anonymous.minimum_version = anonymous.maximum_version = version
    heard = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", rig.port)) as plain,
        anonymous.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        heard = secure.recv(1000)
    assert heard == b""
    if OPENSSL:
        assert s_client(rig, "-tls1_2").returncode != 0


def test_plain_text_gets_nowhere(rig):
    identity = rig.enrol(Role.SITE, "cesga")
    assert identity is not None
    with grpc.insecure_channel(rig.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            next(GatewayCalls(channel).listen(pb.ListenRequest(), timeout=HANG_S))
        assert refused.value.code() in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
    assert rig.gateway._door.calls.count(Peer(role=Role.SITE, name="cesga")) == 0
