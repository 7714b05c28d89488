"""From an invitation's file to an identity, through a real gateway, whatever happens in between."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import (
    FedfactoryError,
    IdentityError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from fedfactory.identity.bootstrap import bootstrap_key, new_token
from fedfactory.identity.enrolment import (
    Identity,
    load_identity,
    read_request,
    request_text,
)
from fedfactory.identity.facts import facts_of
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.enrolling import enrol_identity, is_under_way
from fedfactory.wire.invitations import invitation_identity, parse_invitation, read_invitation
from fedfactory.wire.membership import Certified, EnrolRequest, Invitation, RenewRequest
from fedfactory.wire.renewal import Renewal
from tests.patience import stretched
from tests.unit.identity_rig import Seat, seat

STEPS = 40  # more than an enrolment has


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory):
    with seat(tmp_path_factory.mktemp("seat")) as opened:
        yield opened


def tokens_below(folder: Path, token: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if token.encode() in path.read_bytes()]


def test_a_site_enrols_and_no_token_stays(here: Seat, tmp_path: Path) -> None:
    invitation = here.invite("alba")
    folder = tmp_path / "identity"
    enrol_identity(folder, invitation)
    identity = load_identity(folder)
    here.registry.standing(Peer(role=Role.SITE, name="alba"), facts_of(identity.certificate_pem))
    assert "alba" in here.registry.sites()
    assert tokens_below(tmp_path, invitation.token) == []
    assert {path.name for path in tmp_path.iterdir()} == {"identity", "identity.lock"}
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    before = identity
    enrol_identity(folder, invitation)  # again: nothing is done
    assert load_identity(folder) == before


def test_an_invitation_serves_one(
    here: Seat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    invitation = here.invite("bora")
    enrol_identity(tmp_path / "one" / "identity", invitation)
    with pytest.raises(RefusedError, match="used already"):
        enrol_identity(tmp_path / "two" / "identity", invitation)
    assert not (tmp_path / "two" / "identity").exists()
    assert "an enrolment as 'bora' is refused: this invitation was used already" in caplog.text


def test_a_refused_invitation_does_not_stand_in_the_way(here: Seat, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    superseded, newest = here.invite("bela"), here.invite("bela")
    enrol_identity(folder, newest)
    with pytest.raises(RefusedError, match="replaced by a newer one"):
        enrol_identity(folder, superseded)
    assert not is_under_way(folder)
    enrol_identity(folder, newest)  # is enrolled with it


def test_two_at_once(here: Seat, tmp_path: Path) -> None:
    invitation = here.invite("cara")
    ends: list[str] = []

    def enrol(name: str) -> None:
        try:
            enrol_identity(tmp_path / name / "identity", invitation)
            ends.append("enrolled")
        except RefusedError:
            ends.append("refused")

    threads = [threading.Thread(target=enrol, args=(name,)) for name in ("a", "a", "b", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ends) == ["enrolled", "enrolled", "refused", "refused"]  # each folder is one


def test_a_new_invitation_replaces_an_identity_whole(here: Seat, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    enrol_identity(folder, here.invite("dora"))
    old = load_identity(folder)
    here.registry.revoke(Peer(role=Role.SITE, name="dora"), by="ana", reason="lost")
    here.gateway.cut(Peer(role=Role.SITE, name="dora"))
    unreached = replace(here.invite("dora"), gateway="127.0.0.1:1")
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 cannot be reached"):
        enrol_identity(folder, unreached)
    assert load_identity(folder) == old  # until the new one is there
    enrol_identity(folder, None, here.address)
    new = load_identity(folder)
    assert new.key_pem != old.key_pem
    assert {path.name for path in tmp_path.iterdir()} == {"identity", "identity.lock"}


KILLED = """
import os, sys
from pathlib import Path
from fedfactory import durable_file
from fedfactory.wire import enrolling
left = int(sys.argv[3])

def step(*_):
    global left
    left -= 1
    if left == 0:
        os._exit(9)

def hook(event, args):
    # Each change of the file system, and the call itself, is a step.
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
        step()
    if event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT:
        step()

asked = enrolling._ask

def ask(*arguments):
    step()
    certified = asked(*arguments)
    step()
    return certified

enrolling._ask = ask
from fedfactory.wire.invitations import read_invitation
invitation = read_invitation(Path(sys.argv[2]))
import fedfactory.wire.rpc.service, fedfactory.wire.tls
sys.dont_write_bytecode = True
sys.addaudithook(hook)
enrolling.enrol_identity(Path(sys.argv[1]), invitation)
"""


def test_killed_at_each_step_it_goes_on(here: Seat, tmp_path: Path) -> None:
    """SIGKILL-like ends at every change of the disk and around the call; then the same again."""
    finished = 0
    for step in range(1, STEPS):
        name, folder = f"kill{step}", tmp_path / str(step) / "identity"
        path = here.invitation_file(tmp_path / f"{step}.json", name)
        words = [sys.executable, "-c", KILLED, str(folder), str(path)]
        ended = subprocess.run([*words, str(step)], capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            finished += 1
            break
        assert ended.returncode == 9, ended.stderr
        if folder.exists():
            load_identity(folder)  # never half of one
        enrol_identity(folder, None if is_under_way(folder) else read_invitation(path))
        identity = load_identity(folder)
        here.registry.standing(Peer(role=Role.SITE, name=name), facts_of(identity.certificate_pem))
        token = json.loads(path.read_text())["token"]
        assert tokens_below(folder.parent, token) == []
        assert {p.name for p in folder.parent.iterdir()} == {"identity", "identity.lock"}
    assert finished == 1, f"an enrolment has more than {STEPS} steps"
    assert step > 15


def test_a_certificate_for_another_key_is_not_taken(
    here: Seat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol_identity(tmp_path / "other" / "identity", here.invite("mora"))
    others = load_identity(tmp_path / "other" / "identity")
    wrong = Certified(
        certificate=others.certificate_pem.decode(), authority=others.authority_pem.decode()
    )
    invitation, folder = here.invite("nera"), tmp_path / "identity"
    with monkeypatch.context() as lying:
        lying.setattr(here.registrar, "_certified", lambda _: wrong)
        with pytest.raises(IdentityError, match="for another key"):
            enrol_identity(folder, invitation)
    assert not folder.exists()
    enrol_identity(folder, invitation)  # the same key: nothing of the lie stayed
    load_identity(folder)


def test_a_member_renews_and_an_ended_one_does_not(tmp_path: Path) -> None:
    lifetime = timedelta(seconds=stretched(3))
    with seat(tmp_path / "seat", lifetime=lifetime) as short:
        folder = tmp_path / "identity"
        enrol_identity(folder, short.invite("cesga"))
        renewal, before = Renewal(folder), load_identity(folder)
        facts, peer = facts_of(before.certificate_pem), Peer(role=Role.SITE, name="cesga")
        assert renewal.due_in_s() <= lifetime.total_seconds()

        def ask(request: str) -> Certified:
            return short.registrar.renew(peer, facts, RenewRequest(csr=request), "0.1.0")

        after = renewal.renew(ask)
        assert after.key_pem == before.key_pem
        assert after.certificate_pem != before.certificate_pem
        time.sleep(max(0.0, facts_of(after.certificate_pem).not_after - time.time()) + 0.1)
        with pytest.raises(IdentityError, match="new invitation"):
            renewal.renew(ask)
        with pytest.raises(IdentityError, match="has ended"):
            ask(read_request(folder).csr)


def test_a_renewal_is_for_the_key_in_use(here: Seat, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    enrol_identity(folder, here.invite("efra"))
    facts = facts_of(load_identity(folder).certificate_pem)
    other = request_text(ec.generate_private_key(ec.SECP256R1()), "efra")
    with pytest.raises(IdentityError, match="key in use"):
        here.registrar.renew(
            Peer(role=Role.SITE, name="efra"), facts, RenewRequest(csr=other), "0.1.0"
        )


def test_what_comes_back_from_a_renewal_is_checked(here: Seat, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    enrol_identity(folder, here.invite("fama"))
    before = load_identity(folder)
    with seat(tmp_path / "elsewhere") as elsewhere:
        invitation = elsewhere.invite("fama")
        facts = facts_of(invitation.certificate.encode())

        def theirs(request: str) -> Certified:
            wanted = EnrolRequest(csr=request)
            peer = Peer(role=Role.INVITED, name="fama")
            return elsewhere.registrar.enrol(peer, facts, wanted, "0.1.0")

        with pytest.raises(IdentityError, match="is new, and no certificate of its key"):
            Renewal(folder).renew(theirs)
    assert load_identity(folder) == before


def test_the_coordinator_must_be_the_invitations(here: Seat, tmp_path: Path) -> None:
    with seat(tmp_path / "other") as other:
        stray = replace(here.invite("gala"), gateway=other.address)
        with pytest.raises(IdentityError, match="is not the coordinator of 'alliance'"):
            enrol_identity(tmp_path / "identity", stray)


def test_the_tokens_own_key_cannot_be_certified(here: Seat) -> None:
    invitation = here.invite("hera")
    facts = facts_of(invitation.certificate.encode())
    csr = request_text(bootstrap_key(invitation.token), "hera")
    with pytest.raises(IdentityError):
        here.registrar.enrol(
            Peer(role=Role.INVITED, name="hera"), facts, EnrolRequest(csr=csr), "0.1.0"
        )


# ---- reading invitations ----------------------------------------------------------------------------


def test_an_invitation_reads_back(here: Seat, tmp_path: Path) -> None:
    path = here.invitation_file(tmp_path / "i.json", "iona")
    invitation = read_invitation(path)
    assert (invitation.consortium, invitation.role, invitation.name) == ("alliance", "site", "iona")
    assert invitation.coordinator_key == here.consortium.coordinator_key
    assert set(invitation.operator_keys) == {"ana"}
    key = bootstrap_key(invitation.token)
    assert facts_of(invitation.certificate.encode()).public_key == public_text(key)
    assert isinstance(invitation_identity(invitation), Identity)


def public_text(key: ec.EllipticCurvePrivateKey) -> str:
    from fedfactory.identity.facts import public_key_text

    return public_key_text(key.public_key())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"token": new_token()}, "altered"),
        ({"token": "0" * 63}, "64 hexadecimal"),
        ({"name": "other"}, "altered"),
        ({"role": "coordinator"}, "cannot be enrolled"),
        ({"name": "../x"}, "cannot be a name"),
        ({"gateway": "hub"}, "host:port"),
        ({"gateway": "hub:99999"}, "host:port"),
        ({"coordinator_key": "sha256:ab"}, "fingerprint"),
        ({"operator_keys": {"ana": "md5:00"}}, "fingerprint"),
        ({"expires_at": 1.0}, "expired on 1970-01-01"),
        ({"authority": "none"}, "no certificates"),
        ({"certificate": "none"}, "no certificates"),
    ],
)
def test_an_altered_invitation_is_named(
    here: Seat, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    told = json.loads(to_json(here.invite("jura")))
    path = tmp_path / "i.json"
    path.write_text(json.dumps({**told, **changes}))
    kind = RefusedError if "expires_at" in changes else UsageError
    with pytest.raises(kind, match=said) as error:
        read_invitation(path)
    assert str(path) in str(error.value)
    assert told["token"] not in str(error.value)


def test_another_consortiums_authority_is_found_out(here: Seat, tmp_path: Path) -> None:
    with seat(tmp_path / "other") as other:
        mixed = replace(here.invite("kyra"), authority=other.invite("kyra").authority)
    with pytest.raises(IdentityError, match="does not lead to a root"):
        parse_invitation(to_json(mixed).encode(), now=time.time())


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000, b"x" * 300_000]
)
def test_what_is_no_invitation(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "i.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"i\.json: (this is no invitation|larger than)"):
        read_invitation(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_invitation(tmp_path / "absent.json")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_invitations_are_refused_in_words_or_the_same(
    here: Seat, data: st.DataObject
) -> None:
    text = bytearray(SAMPLE.setdefault("text", to_json(here.invite("luna")).encode()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    token = json.loads(SAMPLE["text"])["token"]
    said, found = "", None
    try:
        found = parse_invitation(bytes(text), now=time.time())
    except FedfactoryError as error:
        said = error.public_message
    assert token not in said
    if found is None:
        assert said
        return
    same = from_json(Invitation, SAMPLE["text"])
    assert (found.token, found.name) == (same.token, same.name)  # what the certificate binds


SAMPLE: dict[str, bytes] = {}


@given(st.text(max_size=80))
def test_any_text_is_a_token_or_is_refused(text: str) -> None:
    is_token = len(text) == 64 and set(text) <= set("0123456789abcdef")
    if is_token:
        bootstrap_key(text)
        return
    with pytest.raises(IdentityError, match="64 hexadecimal"):
        bootstrap_key(text)


def test_a_token_stands_for_one_key_for_ever() -> None:
    """A change of the derivation would make every invitation that is out there worthless."""
    token = "00" * 31 + "01"
    assert bootstrap_key(token).private_numbers().private_value == int(
        "5f2ad3fdc6087a8fe11bfa63de3399a9119149ff812674cc0fce8a48c85a8e84", 16
    )
    assert public_text(bootstrap_key(token)) != public_text(bootstrap_key("00" * 31 + "02"))
