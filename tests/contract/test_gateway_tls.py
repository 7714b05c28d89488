"""Who gets in at the gateway's door, and at which door a site's agent knocks."""

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from gateway_rig import open_rig

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError
from fedfactory.identity import authority as authority_module
from fedfactory.identity.authority import Authority
from fedfactory.identity.enrolment import Identity
from fedfactory.identity.roles import Role
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.service import SERVICE
from fedfactory.wire.tls import is_loopback, server_credentials
from site_agents.gateway_client import GatewayClient


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path) as rig:
        yield rig


def knock(rig, credentials, path=f"/{SERVICE}/Listen", **options):
    with grpc.secure_channel(rig.address, credentials, options=[*options.items()]) as channel:
        call = channel.unary_stream(path, pb.ListenRequest.SerializeToString)
        return next(call(pb.ListenRequest(), timeout=5))


def test_an_admitted_site_is_heard(rig):
    client = rig.admit("cesga", 7)
    next(client.listen())
    assert rig.gateway.connected() == ["cesga"]


def test_no_certificate_no_connection(rig):
    credentials = grpc.ssl_channel_credentials(rig.authority.certificate_pem)
    with pytest.raises(grpc.RpcError) as refused:
        knock(rig, credentials)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_foreign_authority_counts_for_nothing(rig):
    rig.admit("cesga", 7)
    stranger = rig.enrol(Role.SITE, "lumi", authority=Authority.create_ephemeral())
    forged = Identity(
        key_pem=stranger.key_pem,
        certificate_pem=stranger.certificate_pem,
        authority_pem=rig.authority.certificate_pem,
    )
    with pytest.raises(EnvironmentFailedError):
        next(rig.client(forged).listen())
    assert rig.gateway.connected() == []


def test_a_valid_site_that_was_not_admitted_is_refused(rig):
    client = rig.client(rig.enrol(Role.SITE, "lumi"))
    with pytest.raises(IdentityError) as refused:
        next(client.listen())
    assert "admitted" in refused.value.diagnostic


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.VIEWER])
def test_another_role_of_an_admitted_name_is_refused(rig, role):
    rig.admit("cesga", 7)
    client = rig.client(rig.enrol(role, "cesga"))
    with pytest.raises(IdentityError):
        next(client.listen())
    with pytest.raises(IdentityError):
        client.tunnel("PULL_MESSAGES", b"", **rig.signed("cesga"))
    assert rig.forwarded == []


def test_a_coordinators_certificate_opens_no_site_call(rig):
    rig.admit("lead", 7)  # a site of the same name makes no difference
    client = rig.client(rig.enrol(Role.COORDINATOR, "lead"))
    with pytest.raises((IdentityError, EnvironmentFailedError)):
        next(client.listen())


def test_an_agent_does_not_talk_to_a_gateway_of_another_authority(rig):
    other = Authority.create_ephemeral()
    identity = rig.enrol(Role.SITE, "lumi", authority=other)
    with pytest.raises(IdentityError, match="enrolled with"):
        next(rig.client(identity).listen())


def test_a_site_cannot_pass_for_the_gateway(rig, monkeypatch):
    """Even with the hosts in its certificate: its key usage is for callers only."""
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    monkeypatch.setitem(authority_module._USAGE, Role.COORDINATOR, usage)
    impostor = rig.enrol(Role.COORDINATOR, "impostor", hosts=("127.0.0.1",))
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_secure_port("127.0.0.1:0", server_credentials(impostor))
    server.start()
    client = GatewayClient(f"127.0.0.1:{port}", rig.enrol(Role.SITE, "cesga"))
    try:
        with pytest.raises(IdentityError, match="certificate"):
            next(client.listen())
    finally:
        client.close()
        server.stop(0).wait()


@pytest.mark.parametrize(
    "path",
    [
        f"/{SERVICE}/Tunnel/../../v1/control/start-run",
        f"/{SERVICE}/%4cisten",
        f"/{SERVICE}/listen",
        "/v1/control/start-run",
        "/v1/fleet/pull-messages",
        "/v1/runtime/pull-task",
        "/flwr.proto.Control/StartRun",
        "/flwr.proto.Fleet/PullMessages",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "//Listen",
    ],
)
def test_there_is_nothing_but_the_four_methods(rig, path):
    rig.admit("cesga", 7)
    identity = rig.enrol(Role.SITE, "cesga")
    credentials = grpc.ssl_channel_credentials(
        identity.authority_pem, identity.key_pem, identity.certificate_pem
    )
    with pytest.raises(grpc.RpcError) as refused:
        knock(rig, credentials, path)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert rig.forwarded == []


def handshake(rig, folder, ciphers):
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    context.load_cert_chain(folder / "certificate.pem", folder / "tls.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", rig.port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.cipher()[0]


def test_tls_1_2_only_with_forward_secret_aead_suites(rig, tmp_path):
    rig.enrol(Role.SITE, "cesga")
    folder = tmp_path / "identity-site-cesga"
    strong = "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert handshake(rig, folder, strong) == strong
    with pytest.raises(ssl.SSLError):
        handshake(rig, folder, "ECDHE-ECDSA-AES128-SHA")


def test_a_dead_proxy_never_touches_loopback(rig, monkeypatch):
    identity = rig.enrol(Role.SITE, "cesga")
    rig.admit("cesga", 7)
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    next(rig.client(identity).listen())
    # the same call through a channel that honours the environment shows that the proxy is dead
    credentials = grpc.ssl_channel_credentials(
        identity.authority_pem, identity.key_pem, identity.certificate_pem
    )
    with pytest.raises(grpc.RpcError) as dead:
        knock(rig, credentials)
    assert dead.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("10.0.0.1:1", False),
        ("gateway.example:1", False),
        ("localhost.example:1", False),
    ],
)
def test_loopback_is_told_by_the_address(address, expected):
    assert is_loopback(address) is expected


def test_a_taken_port_is_named(rig):
    with pytest.raises(EnvironmentFailedError, match=str(rig.port)):
        rig.gateway.start("127.0.0.1", rig.port)


def test_a_certificate_is_for_the_hosts_it_names(rig):
    identity = rig.enrol(Role.SITE, "cesga")
    rig.admit("cesga", 7)
    client = GatewayClient(f"127.0.0.2:{rig.port}", identity)
    try:
        with pytest.raises((IdentityError, EnvironmentFailedError)):
            next(client.listen())
    finally:
        client.close()
