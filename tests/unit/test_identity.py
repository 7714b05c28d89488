"""Who may be who: roles in certificates, keys that stay where they were made."""

import json
import socket
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedfactory.contracts.errors import IdentityError, ProtocolError
from fedfactory.identity.enrolment import (
    ClockBehindError,
    install_certificate,
    load_identity,
    read_request,
    request_identity,
)
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.roles import Peer, Role, peer_of
from fedfactory.identity.root import Root
from site_agents.doctor.way import examine_way

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return an_issuer(tmp_path_factory.mktemp("authority"))


def an_issuer(folder):
    return Issuer.create(folder / "issuer", "alliance", Root.new("alliance"))


def enrol(folder, authority, role=Role.SITE, name="cesga", *, hosts=()):
    request_identity(folder, role, name)
    request = read_request(folder)
    certificate = authority.sign(request.csr_pem, role, request.name, DAY, hosts=hosts)
    install_certificate(folder, certificate, authority.bundle_pem)
    return x509.load_pem_x509_certificate(certificate)


def extension(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind).value


def test_a_certificate_carries_one_role_one_usage_and_the_hosts(tmp_path, authority):
    certificate = enrol(
        tmp_path, authority, Role.COORDINATOR, "lead", hosts=("localhost", "127.0.0.1")
    )
    names = extension(certificate, x509.SubjectAlternativeName)
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "fedfactory:coordinator:lead"
    ]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("role", [Role.SITE, Role.OPERATOR, Role.VIEWER, Role.INVITED])
def test_callers_may_only_call(tmp_path, authority, role):
    certificate = enrol(tmp_path, authority, role)
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extension(certificate, x509.BasicConstraints).ca
    with pytest.raises(IdentityError, match="serves nobody"):
        authority.sign(read_request(tmp_path).csr_pem, role, "x", DAY, hosts=("localhost",))


def test_what_the_request_says_of_itself_is_ignored(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    liar = x509.UniformResourceIdentifier("fedfactory:coordinator:lead")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lead")]))
        .add_extension(x509.SubjectAlternativeName([liar]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    signed = x509.load_pem_x509_certificate(authority.sign(request, Role.SITE, "cesga", DAY))
    names = extension(signed, x509.SubjectAlternativeName)
    assert [name.value for name in names] == ["fedfactory:site:cesga"]


def test_a_request_must_prove_that_its_key_is_the_askers(tmp_path, authority):
    request_identity(tmp_path, Role.SITE, "cesga")
    request = x509.load_pem_x509_csr(read_request(tmp_path).csr_pem)
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # the last byte of the signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(IdentityError, match="own key"):
        authority.sign(forged, Role.SITE, "cesga", DAY)


def test_only_nist_keys_are_certified(authority):
    key = rsa.generate_private_key(65537, 2048)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(IdentityError, match="P-256"):
        authority.sign(pem, Role.SITE, "cesga", DAY)


def test_no_request_is_an_identity_error(authority):
    with pytest.raises(IdentityError, match="certificate request"):
        authority.sign(b"not a request", Role.SITE, "cesga", DAY)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a:b", "a b", "x" * 65, "-a", "ü"])
def test_names_that_could_mean_more_than_a_name_are_refused(tmp_path, name):
    with pytest.raises(IdentityError, match="cannot be a name"):
        request_identity(tmp_path, Role.SITE, name)
    assert not list(tmp_path.iterdir())


def test_a_certificate_never_outlives_its_issuer(tmp_path, authority):
    request_identity(tmp_path, Role.SITE, "cesga")
    request = read_request(tmp_path).csr_pem
    signed = authority.sign(request, Role.SITE, "cesga", timedelta(days=9999))
    end = x509.load_pem_x509_certificate(signed).not_valid_after_utc
    assert end == authority.certificate.not_valid_after_utc


def test_the_key_is_a_private_file_made_once(tmp_path, authority):
    enrol(tmp_path, authority)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"tls.key", "request.json", "certificate.pem", "authority.pem"}
    assert stat.S_IMODE((tmp_path / "tls.key").stat().st_mode) == 0o600
    request_identity(tmp_path, Role.SITE, "cesga")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_private_key_is_in_what_travels(tmp_path, authority):
    enrol(tmp_path, authority)
    travels = (tmp_path / "request.json").read_bytes() + (tmp_path / "certificate.pem").read_bytes()
    assert b"PRIVATE" not in travels


def test_an_older_folder_that_has_a_node_key_is_an_identity_as_it_is(tmp_path, authority):
    enrol(tmp_path, authority)
    (tmp_path / "node.key").write_text("a key of Flower's")
    request = json.loads((tmp_path / "request.json").read_text())
    for named in ("a public key (PEM)", None):  # a site's, and everybody else's
        text = json.dumps(request | {"node_public_key": named})
        (tmp_path / "request.json").write_text(text)
        assert read_request(tmp_path).csr == request["csr"]
        request_identity(tmp_path, Role.SITE, "cesga")
        assert load_identity(tmp_path)
    for damaged in ("[]", "{", json.dumps(request | {"note": ""})):
        (tmp_path / "request.json").write_text(damaged)
        with pytest.raises(ProtocolError):
            read_request(tmp_path)


def test_a_folder_holds_one_identity(tmp_path):
    request_identity(tmp_path, Role.SITE, "cesga")
    with pytest.raises(IdentityError, match="'cesga'"):
        request_identity(tmp_path, Role.SITE, "lumi")


def test_a_request_cut_short_is_made_again(tmp_path):
    request_identity(tmp_path, Role.SITE, "cesga")
    (tmp_path / "request.json").unlink()  # killed between the keys and the request
    request_identity(tmp_path, Role.SITE, "cesga")
    key = serialization.load_pem_private_key((tmp_path / "tls.key").read_bytes(), password=None)
    request = x509.load_pem_x509_csr(read_request(tmp_path).csr_pem)
    assert request.public_key() == key.public_key()


def test_an_identity_must_hang_together(tmp_path, authority):
    enrol(tmp_path / "a", authority)
    enrol(tmp_path / "b", authority, name="lumi")
    other = an_issuer(tmp_path)
    theirs = (tmp_path / "b" / "certificate.pem").read_bytes()
    mine = (tmp_path / "a" / "certificate.pem").read_bytes()

    install_certificate(tmp_path / "a", theirs, authority.bundle_pem)
    with pytest.raises(IdentityError, match="another key"):
        load_identity(tmp_path / "a")
    install_certificate(tmp_path / "a", mine, other.bundle_pem)
    with pytest.raises(IdentityError, match="root that is trusted"):
        load_identity(tmp_path / "a")
    install_certificate(tmp_path / "a", b"half a certif", authority.bundle_pem)
    with pytest.raises(IdentityError, match="no whole identity"):
        load_identity(tmp_path / "a")


def test_an_expired_certificate_is_named(tmp_path, authority):
    request_identity(tmp_path, Role.SITE, "cesga")
    request = read_request(tmp_path)
    expired = authority.sign(request.csr_pem, Role.SITE, "cesga", timedelta(minutes=-1))
    install_certificate(tmp_path, expired, authority.bundle_pem)
    with pytest.raises(IdentityError, match="new invitation"):
        load_identity(tmp_path)


def test_a_clock_that_is_behind_is_named(tmp_path, authority):
    request_identity(tmp_path, Role.SITE, "cesga")
    key = serialization.load_pem_private_key((tmp_path / "tls.key").read_bytes(), password=None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cesga")])
    begin = datetime.now(UTC) + timedelta(hours=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    made = made.public_key(key.public_key()).not_valid_before(begin).not_valid_after(begin + DAY)
    signed = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    install_certificate(tmp_path, signed, authority.bundle_pem)
    with pytest.raises(ClockBehindError, match=r"this machine's clock says .*: set the clock"):
        load_identity(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        reached, clock = examine_way(address, tmp_path)
    assert (reached.level, clock.level, clock.area) == ("ok", "fail", "clock")


def test_a_peer_is_read_from_its_one_uri():
    sans = [b"localhost", b"fedfactory:site:cesga"]
    assert peer_of({"x509_subject_alternative_name": sans}) == Peer(role=Role.SITE, name="cesga")


@pytest.mark.parametrize(
    "sans",
    [
        [],
        [b"localhost"],
        [b"fedfactory:site:cesga", b"fedfactory:operator:ana"],
        [b"fedfactory:site:cesga", b"fedfactory:site:lumi"],
        [b"fedfactory:root:cesga"],
        [b"fedfactory:site"],
        [b"fedfactory:site:"],
        [b"fedfactory:site:\xff\xfe"],
    ],
)
def test_no_role_several_roles_or_an_unknown_one_is_refused(sans):
    with pytest.raises(IdentityError):
        peer_of({"x509_subject_alternative_name": sans})
