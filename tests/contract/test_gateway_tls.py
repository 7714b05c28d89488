"""Who gets in at the gateway's door, and at which door a site's agent knocks."""

import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError
from fedfactory.identity import certificates
from fedfactory.identity.enrolment import Identity, request_text
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.root import Root
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import GATEWAY
from fedfactory.wire.tls import is_loopback, server_credentials
from site_agents.gateway_client import GatewayClient
from tests.contract.gateway_rig import open_rig
from tests.patience import HANG_S


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path) as rig:
        yield rig


def stranger_issuer(folder):
    return Issuer.create(folder / "stranger", "lead", Root.new("lead"))


def knock(rig, credentials, path=f"/{GATEWAY}/Listen", **options):
    with grpc.secure_channel(rig.address, credentials, options=[*options.items()]) as channel:
        call = channel.unary_stream(path, pb.ListenRequest.SerializeToString)
        return next(call(pb.ListenRequest(), timeout=HANG_S))


def test_an_admitted_site_is_heard(rig):
    client = rig.admit("cesga")
    next(client.listen())
    assert rig.gateway.connected() == ["cesga"]


def test_a_site_is_heard_before_any_run_of_its_own_is_open(rig):
    client = rig.client(rig.enrol(Role.SITE, "lumi"))
    next(client.listen())
    assert client.fetch() is None
    assert not client.send("nothing", "was asked", "")


def test_no_certificate_no_connection(rig):
    credentials = grpc.ssl_channel_credentials(rig.issuer.bundle_pem)
    with pytest.raises(grpc.RpcError) as refused:
        knock(rig, credentials)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_foreign_authority_counts_for_nothing(rig, tmp_path):
    rig.admit("cesga")
    stranger = rig.enrol(Role.SITE, "lumi", issuer=stranger_issuer(tmp_path))
    forged = Identity(
        key_pem=stranger.key_pem,
        certificate_pem=stranger.certificate_pem,
        authority_pem=rig.issuer.bundle_pem,
    )
    with pytest.raises(EnvironmentFailedError):
        next(rig.client(forged).listen())
    assert rig.gateway.connected() == []


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.VIEWER])
def test_another_role_of_an_admitted_name_is_refused(rig, role):
    rig.admit("cesga")
    run = rig.run("cesga")
    sent = run.order("cesga")
    client = rig.client(rig.enrol(role, "cesga"))
    with pytest.raises(IdentityError):
        next(client.listen())
    with pytest.raises(IdentityError):
        client.fetch()
    with pytest.raises(IdentityError):
        client.send(sent, "done", "")
    assert run.server.waits("cesga")


def test_a_coordinators_certificate_opens_no_site_call(rig):
    rig.admit("lead")  # a site of the same name makes no difference
    client = rig.client(rig.enrol(Role.COORDINATOR, "lead"))
    with pytest.raises((IdentityError, EnvironmentFailedError)):
        next(client.listen())


def test_an_agent_does_not_talk_to_a_gateway_of_another_authority(rig, tmp_path):
    other = stranger_issuer(tmp_path)
    identity = rig.enrol(Role.SITE, "lumi", issuer=other)
    with pytest.raises(IdentityError, match="enrolled with"):
        next(rig.client(identity).listen())


@pytest.mark.parametrize("role", [Role.SITE, Role.OPERATOR, Role.VIEWER, Role.INVITED])
def test_no_other_role_can_pass_for_the_gateway(rig, role):
    """Of the same authority, and naming the host: its key usage is for callers only."""
    request = x509.load_pem_x509_csr(certificate_request("impostor", key := new_key()))
    leaf = certificates.build_leaf(
        request.public_key(),
        Peer(role=Role.COORDINATOR, name="impostor"),
        rig.issuer.certificate,
        rig.issuer._key,
        timedelta(days=1),
        hosts=("127.0.0.1",),
    )
    for made, refused in ((leaf, False), (as_role(leaf, role, rig), True)):
        identity = Identity(
            key_pem=pem_of_key(key),
            certificate_pem=certificates.pem_of([made, rig.issuer.certificate]),
            authority_pem=rig.issuer.bundle_pem,
        )
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_secure_port("127.0.0.1:0", server_credentials(lambda: identity))  # noqa: B023
        server.start()
        client = GatewayClient(f"127.0.0.1:{port}", rig.enrol(Role.SITE, "cesga"))
        try:
            with pytest.raises(IdentityError if refused else EnvironmentFailedError) as found:
                next(client.listen())
            assert ("CERTIFICATE_VERIFY_FAILED" in found.value.diagnostic) is refused
        finally:
            client.close()
            server.stop(0).wait()


def new_key():
    return ec.generate_private_key(ec.SECP256R1())


def certificate_request(name, key):
    return request_text(key, name).encode()


def pem_of_key(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def as_role(leaf, role, rig):
    """The same certificate, hosts and all, with the role and key usage of another."""
    hosts = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [name for name in hosts if isinstance(name, x509.IPAddress)]
    uri = x509.UniformResourceIdentifier(Peer(role=role, name="impostor").uri)
    return (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(leaf.issuer)
        .public_key(leaf.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(leaf.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([certificates._USAGE[role]]), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri, *addresses]), critical=False)
        .sign(rig.issuer._key, hashes.SHA256())
    )


@pytest.mark.parametrize(
    "path",
    [
        f"/{GATEWAY}/FetchOrder/../../v1/control/start-run",
        f"/{GATEWAY}/%4cisten",
        f"/{GATEWAY}/listen",
        f"/{GATEWAY}/Tunnel",
        "/v1/control/start-run",
        "/v1/fleet/pull-messages",
        "/v1/runtime/pull-task",
        "/flwr.proto.Control/StartRun",
        "/flwr.proto.Fleet/PullMessages",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "//Listen",
    ],
)
def test_there_is_nothing_but_the_methods_of_the_table(rig, path):
    rig.admit("cesga")
    identity = rig.enrol(Role.SITE, "cesga")
    credentials = grpc.ssl_channel_credentials(
        identity.authority_pem, identity.key_pem, identity.certificate_pem
    )
    with pytest.raises(grpc.RpcError) as refused:
        knock(rig, credentials, path)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


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
    folder = rig.save(rig.enrol(Role.SITE, "cesga"), tmp_path / "cesga")
    strong = "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert handshake(rig, folder, strong) == strong
    with pytest.raises(ssl.SSLError):
        handshake(rig, folder, "ECDHE-ECDSA-AES128-SHA")


def test_a_dead_proxy_never_touches_loopback(rig, monkeypatch):
    identity = rig.enrol(Role.SITE, "cesga")
    rig.admit("cesga")
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
    rig.admit("cesga")
    client = GatewayClient(f"127.0.0.2:{rig.port}", identity)
    try:
        with pytest.raises((IdentityError, EnvironmentFailedError)):
            next(client.listen())
    finally:
        client.close()
