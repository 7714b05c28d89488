"""A new root follows an old one without anybody being cut off: by handshakes, and by openssl."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from fedfactory.contracts.errors import FedfactoryError, IdentityError, RefusedError, UsageError
from fedfactory.coordinator.membership.consortium import (
    coordinator_identity,
    finish_rotation,
    rotate,
)
from fedfactory.identity.certificates import pem_of
from fedfactory.identity.enrolment import (
    Identity,
    install_certificate,
    load_identity,
    read_request,
    request_identity,
)
from fedfactory.identity.issuer import ISSUER_FILE, MOST_CROSSES, Issuer
from fedfactory.identity.roles import Role
from fedfactory.identity.root import Root
from fedfactory.identity.succession import follow, read_bundle
from fedfactory.wire.enrolling import enrol_identity
from fedfactory.wire.membership import Certified
from fedfactory.wire.renewal import Renewal
from fedfactory.wire.rpc.service import EnrolmentCalls
from fedfactory.wire.tls import open_channel, server_credentials
from tests.patience import HANG_S
from tests.unit.identity_rig import MONTH, PASSPHRASE, seat

DAY = timedelta(days=1)


class People:
    """Makes identities under an issuer, as they are at that moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.old, self.new = Root.new("alliance"), Root.new("alliance")
        self.issuer = Issuer.create(folder / "issuer", "alliance", self.old)

    def identity(self, role: Role, name: str) -> Identity:
        folder = self.folder / name
        request_identity(folder, role, name)
        hosts = ("127.0.0.1",) if role is Role.COORDINATOR else ()
        chain = self.issuer.sign(read_request(folder).csr_pem, role, name, DAY, hosts=hosts)
        install_certificate(folder, chain, self.issuer.bundle_pem)
        return load_identity(folder)


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


def shake_hands(server: Identity, caller: Identity) -> bool:
    """Whether a real call gets through, both checking each other."""
    served = grpc.server(ThreadPoolExecutor(2))
    method = grpc.unary_unary_rpc_method_handler(lambda _, __: b"heard")
    served.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", {"b": method}),))
    port = served.add_secure_port("127.0.0.1:0", server_credentials(lambda: server))
    served.start()
    try:
        with open_channel(f"127.0.0.1:{port}", caller) as channel:
            return channel.unary_unary("/a/b")(b"", timeout=HANG_S) == b"heard"
    except grpc.RpcError:
        return False
    finally:
        served.stop(0).wait()


def strictly_verified(folder: Path, chain: bytes, roots: bytes, purpose: str) -> bool:
    bundle, shown = folder / "roots.pem", folder / "chain.pem"
    bundle.write_bytes(roots)
    shown.write_bytes(chain)
    words = [
        *("openssl", "verify", "-x509_strict", "-purpose", purpose),
        *("-CAfile", str(bundle), "-untrusted", str(shown), str(shown)),
    ]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_handshakes_before_during_and_after(people: People) -> None:
    coordinator = people.identity(Role.COORDINATOR, "alliance")
    behind = people.identity(Role.SITE, "behind")
    assert shake_hands(coordinator, behind)

    people.issuer.rotate(people.old, people.new)
    renewed_coordinator = people.identity(Role.COORDINATOR, "alliance")
    moved = people.identity(Role.SITE, "moved")
    assert shake_hands(renewed_coordinator, behind)
    assert shake_hands(renewed_coordinator, moved)
    assert shake_hands(coordinator, behind)  # not yet renewed itself

    people.issuer.finish_rotation()
    last = people.identity(Role.COORDINATOR, "alliance")
    fresh = people.identity(Role.SITE, "fresh")
    assert shake_hands(last, fresh)
    assert shake_hands(last, moved)
    assert not shake_hands(last, behind)
    assert len(x509.load_pem_x509_certificates(last.certificate_pem)) == 2


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
def test_strict_verifiers_agree(people: People) -> None:
    folder = people.folder
    before = people.identity(Role.COORDINATOR, "alliance")
    site = people.identity(Role.SITE, "behind")
    assert strictly_verified(folder, before.certificate_pem, before.authority_pem, "sslserver")
    assert strictly_verified(folder, site.certificate_pem, site.authority_pem, "sslclient")
    assert not strictly_verified(folder, site.certificate_pem, site.authority_pem, "sslserver")

    people.issuer.rotate(people.old, people.new)
    during = people.identity(Role.COORDINATOR, "alliance")
    for roots in (before.authority_pem, during.authority_pem):
        assert strictly_verified(folder, during.certificate_pem, roots, "sslserver")
    people.issuer.finish_rotation()
    after = people.identity(Role.COORDINATOR, "alliance")
    assert strictly_verified(folder, after.certificate_pem, after.authority_pem, "sslserver")
    assert not strictly_verified(folder, after.certificate_pem, before.authority_pem, "sslserver")


def test_nobody_but_a_root_makes_authorities(people: People) -> None:
    """A member's key, or an issuer's, cannot certify another authority: path lengths and usages."""
    chain = x509.load_pem_x509_certificates(people.identity(Role.SITE, "s").certificate_pem)
    lengths = [
        one.extensions.get_extension_for_class(x509.BasicConstraints).value
        for one in (*chain, people.old.certificate)
    ]
    assert [(one.ca, one.path_length) for one in lengths] == [(False, None), (True, 0), (True, 2)]
    usages = [
        one.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign for one in chain
    ]
    assert usages == [False, True]


def test_a_new_issuer_under_the_same_root(people: People) -> None:
    coordinator = people.identity(Role.COORDINATOR, "alliance")
    site = people.identity(Role.SITE, "site")
    before = people.issuer.certificate
    people.issuer.renew_issuer(people.old)
    assert people.issuer.certificate != before
    assert shake_hands(people.identity(Role.COORDINATOR, "alliance"), site)
    assert shake_hands(coordinator, people.identity(Role.SITE, "other"))
    with pytest.raises(IdentityError, match="present root key"):
        people.issuer.renew_issuer(people.new)


def test_rotations_come_one_after_the_other(people: People) -> None:
    with pytest.raises(IdentityError, match="no rotation is under way"):
        people.issuer.finish_rotation()
    with pytest.raises(IdentityError, match="present root key"):
        people.issuer.rotate(people.new, people.old)
    people.issuer.rotate(people.old, people.new)
    third = Root.new("alliance")
    with pytest.raises(IdentityError, match="--finish"):
        people.issuer.rotate(people.new, third)
    people.issuer.finish_rotation()
    people.issuer.rotate(people.new, third)
    assert people.issuer.roots == [third.certificate, people.new.certificate]


def test_what_another_process_rotated_counts_at_once(people: People) -> None:
    other = Issuer(people.folder / "issuer")
    people.issuer.rotate(people.old, people.new)
    assert other.roots == [people.new.certificate, people.old.certificate]


def test_members_follow_a_rotation_as_they_renew(tmp_path: Path) -> None:
    with seat(tmp_path) as here:
        consortium, folder = here.consortium, tmp_path / "cesga" / "identity"
        enrol_identity(folder, here.invite("cesga"))
        key = (folder / "tls.key").read_bytes()
        new = Root.new(consortium.name)
        rotate(consortium, Root.open(tmp_path / "root.key", PASSPHRASE), new)
        with pytest.raises(RefusedError, match=r"operator 'ana'.*site 'cesga'"):
            finish_rotation(consortium)
        for member in (folder, tmp_path / "operator" / "identity"):
            renew(member, here.address)
            with pytest.raises(RefusedError):  # the answer may have been lost: not before its use
                finish_rotation(consortium)
            renew(member, here.address)
        finish_rotation(consortium)
        renew(folder, here.address)
        assert load_identity(folder).authority_pem == consortium.issuer().bundle_pem
        assert (folder / "tls.key").read_bytes() == key
        assert consortium.issuer().roots == [new.certificate]


def test_an_unused_invitation_holds_up_the_end_of_a_rotation(tmp_path: Path) -> None:
    with seat(tmp_path) as here:
        invitation = here.invite("cesga")
        rotate(
            here.consortium,
            Root.open(tmp_path / "root.key", PASSPHRASE),
            Root.new(here.consortium.name),
        )
        renew(tmp_path / "operator" / "identity", here.address)
        renew(tmp_path / "operator" / "identity", here.address)
        with pytest.raises(RefusedError, match="site 'cesga'"):
            finish_rotation(here.consortium)
        enrol_identity(tmp_path / "cesga" / "identity", invitation)  # made before, good after
        finish_rotation(here.consortium)
        renew(tmp_path / "cesga" / "identity", here.address)


def test_the_coordinator_renews_itself_and_keeps_its_key(tmp_path: Path) -> None:
    with seat(tmp_path) as here:
        consortium = here.consortium
        key, first = consortium.coordinator_key, coordinator_identity(consortium, MONTH)
        assert coordinator_identity(consortium, MONTH) == first
        (consortium.home / "identity" / "certificate.pem").write_text("half")
        again = coordinator_identity(consortium, DAY)
        assert again.certificate_pem != first.certificate_pem
        assert (again.key_pem, consortium.coordinator_key) == (first.key_pem, key)
        (consortium.home / "identity" / "tls.key").unlink()
        with pytest.raises(IdentityError, match="no whole identity"):
            coordinator_identity(consortium, DAY)  # never a new key: sites pin the old one


def renew(folder: Path, address: str) -> None:
    with open_channel(address, load_identity(folder)) as channel:
        Renewal(folder).renew(asking(channel))


def asking(channel: grpc.Channel) -> Callable[..., object]:
    from fedfactory.wire.membership import RenewRequest

    calls = EnrolmentCalls(channel)
    return lambda request: calls.renew(RenewRequest(csr=request), timeout=HANG_S)


# ---- the root's file -----------------------------------------------------------------------------


def test_the_root_key_is_encrypted_private_and_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    root = Root.new("alliance")
    root.save(path, PASSPHRASE)
    assert path.stat().st_mode & 0o777 == 0o600
    der = root._key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    scalar = root._key.private_numbers().private_value.to_bytes(48, "big")
    for form in (
        path.read_bytes(),
        base64.b64decode(json.loads(path.read_bytes())["key"]["sealed"]),
    ):
        assert not any(part in form for part in (der, scalar, base64.b64encode(scalar)))
    before = path.read_bytes()
    with pytest.raises(UsageError, match="never written over"):
        Root.new("alliance").save(path, PASSPHRASE)
    assert path.read_bytes() == before
    assert Root.open(path, PASSPHRASE).certificate == root.certificate


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b"", "no encrypted root key"),
        (b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMII\n", "no encrypted root key"),
    ],
)
def test_what_is_no_root_key_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "root.key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        Root.open(path, PASSPHRASE)


def test_a_wrong_passphrase_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    Root.new("alliance").save(path, PASSPHRASE)
    with pytest.raises(UsageError, match="another passphrase") as error:
        Root.open(path, b"another passphrase")
    assert PASSPHRASE.decode() not in str(error.value)
    with pytest.raises(UsageError, match="too short"):
        Root.new("alliance").save(tmp_path / "b.key", b"short")
    assert not (tmp_path / "b.key").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ("{}", "is damaged"),
        ("not json", "is damaged"),
        ('{"format": 2, "news": []}', "has format 2, fedfactory .* reads 1"),
        ('{"format": 1}', "holds no issuer"),
    ],
)
def test_an_issuer_of_another_version_or_a_damaged_one(
    people: People, content: str, said: str
) -> None:
    (people.folder / "issuer" / ISSUER_FILE).write_text(content)
    with pytest.raises(FedfactoryError, match=said):
        Issuer(people.folder / "issuer")


# ---- what travels, so that members can follow ---------------------------------------------------


def test_the_bundle_leads_from_every_earlier_root_to_the_present_ones(people: People) -> None:
    first, second, third = people.old, people.new, Root.new("alliance")
    now = datetime.now(UTC)
    people.issuer.rotate(first, second)
    people.issuer.finish_rotation()
    people.issuer.rotate(second, third)
    for trusted in (first, second):
        roots = follow([trusted.certificate], people.issuer.succession_pem, now)
        assert pem_of(roots) == people.issuer.bundle_pem
    people.issuer.finish_rotation()
    assert follow([first.certificate], people.issuer.succession_pem, now) == (third.certificate,)
    shown = people.identity(Role.COORDINATOR, "alliance").certificate_pem
    assert len(x509.load_pem_x509_certificates(shown)) == 2


def test_the_history_of_rotations_is_bounded(people: People) -> None:
    root = people.old
    for _ in range(MOST_CROSSES + 2):
        following = Root.new("alliance")
        people.issuer.rotate(root, following)
        people.issuer.finish_rotation()
        root = following
    assert len(read_bundle(people.issuer.succession_pem).crosses) == MOST_CROSSES


def test_a_rotation_that_nobody_could_follow_is_not_ended(people: People) -> None:
    people.issuer.rotate(people.old, people.new)
    path = people.folder / "issuer" / ISSUER_FILE
    told = json.loads(path.read_text())
    strange = Root.new("alliance").certify_root(people.new.certificate)
    for cross in (None, pem_of([strange]).decode()):
        path.write_text(json.dumps({**told, "cross": cross}))
        before = path.read_bytes()
        with pytest.raises(IdentityError, match="no certificate of its key by a root"):
            people.issuer.finish_rotation()
        assert path.read_bytes() == before
    path.write_text(json.dumps(told))
    people.issuer.finish_rotation()


def test_a_renewal_takes_no_root_beside_a_trusted_one(people: People) -> None:
    folder, strange = people.folder / "s", Root.new("alliance")
    before = people.identity(Role.SITE, "s")
    for bundle in (
        pem_of([strange.certificate]) + people.issuer.bundle_pem,
        people.issuer.bundle_pem + pem_of([strange.certificate]),
        people.issuer.bundle_pem + b" " * 65536,
        pem_of([people.new.certificate]),
    ):

        def ask(request: str, bundle: bytes = bundle) -> Certified:
            chain = people.issuer.sign(request.encode(), Role.SITE, "s", DAY)
            return Certified(certificate=chain.decode(), authority=bundle.decode())

        with pytest.raises(FedfactoryError):
            Renewal(folder).renew(ask)
        assert load_identity(folder) == before
