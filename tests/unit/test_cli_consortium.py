"""The lead's and the operators' commands around identities: made whole, or nothing is left."""

from __future__ import annotations

import io
import json
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from fedfactory.cli.main import main
from fedfactory.contracts.errors import UsageError
from fedfactory.coordinator.coordinator_config import load_coordinator_config
from fedfactory.coordinator.membership import founding
from fedfactory.coordinator.membership.consortium import open_consortium
from fedfactory.identity import certificates
from fedfactory.identity.certificates import pem_of
from fedfactory.identity.enrolment import install_certificate, read_request
from fedfactory.identity.operators import load_operator
from fedfactory.identity.roles import Role
from fedfactory.identity.root import Root
from fedfactory.identity.signing import verify
from fedfactory.wire.invitations import read_invitation
from tests.unit.identity_rig import seat

PASSPHRASE = "correct horse battery staple"


class Lead:
    """Types the commands of a lead in a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.home = folder, folder / "home"
        self.operator, self.root = folder / "ana", folder / "root.key"
        self.passphrase = folder / "passphrase"
        self.passphrase.write_text(f"{PASSPHRASE}\n")
        self.passphrase.chmod(0o600)
        self._capsys = capsys
        self.outputs: list[str] = []

    def type(self, *words: str) -> tuple[int, str]:
        """Run a command; return its exit code and all it printed."""
        code = main(list(words))
        said = self._capsys.readouterr()
        self.outputs.append(said.out + said.err)
        return code, said.out + said.err

    def init(self, **changed: str) -> tuple[int, str]:
        flags = {
            "--home": str(self.home),
            "--root-key": str(self.root),
            "--name": "alliance",
            "--gateway": "hub.example.org:9443",
            "--operator": "ana",
            "--operator-folder": str(self.operator),
            "--passphrase-file": str(self.passphrase),
            **{f"--{key.replace('_', '-')}": value for key, value in changed.items()},
        }
        return self.type("consortium", "init", *(word for pair in flags.items() for word in pair))

    def rotate(self, *words: str) -> tuple[int, str]:
        asked = ("--home", str(self.home), "--passphrase-file", str(self.passphrase))
        return self.type("consortium", "rotate", *asked, *words)

    def show(self) -> dict[str, object]:
        code, text = self.type("consortium", "show", "--home", str(self.home), "--json")
        assert code == 0, text
        return json.loads(text)


@pytest.fixture
def lead(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "lead"
    folder.mkdir()
    made = Lead(folder, capsys)
    yield made
    assert not [text for text in made.outputs if PASSPHRASE in text or "PRIVATE" in text]


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_init_founds_a_consortium(lead: Lead) -> None:
    code, said = lead.init()
    assert code == 0, said
    consortium = open_consortium(lead.home)
    assert consortium.coordinator_key in said
    assert (consortium.name, consortium.hosts) == ("alliance", ("hub.example.org",))
    config = load_coordinator_config(lead.home, [])
    assert (config.name, config.host, config.port) == ("alliance", "0.0.0.0", 9443)
    operator = load_operator(lead.operator)
    assert (operator.name, operator.role, operator.gateway) == (
        "ana",
        Role.OPERATOR,
        "hub.example.org:9443",
    )
    assert operator.coordinator_key == consortium.coordinator_key
    with consortium.registry() as registry:
        assert registry.operators()["ana"] == verify("plan", operator.signer.sign("plan"))
    assert left(lead.folder) == {"home", "ana", "root.key", "passphrase"}
    for path in (lead.root, *lead.home.rglob("*"), *lead.operator.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_loopback_gateway_listens_on_loopback_alone(lead: Lead) -> None:
    assert lead.init(gateway="127.0.0.1:9443", host="localhost")[0] == 0
    values = yaml.safe_load((lead.home / "coordinator.yaml").read_text())
    assert values == {"name": "alliance", "listen": "127.0.0.1:9443"}
    assert open_consortium(lead.home).hosts == ("127.0.0.1", "localhost")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "a/b"}, "cannot be a name"),
        ({"operator": "a b"}, "cannot be a name"),
        ({"gateway": "hub"}, "host:port"),
        ({"gateway": "hub:0x1"}, "host:port"),
        ({"host": "ü.example"}, "no host's name"),
        ({"passphrase_file": "/dev/null"}, "first line is empty"),
        ({"passphrase_file": "absent"}, "cannot be read"),
        ({"root_key": "{folder}/home/root.key"}, "offline"),
        ({"root_key": "{folder}/no/root.key"}, "cannot be written"),
        ({"root_key": "{folder}/passphrase"}, "never written over"),
        ({"operator_folder": "{folder}/passphrase"}, "is there already"),
        ({"operator_folder": "{folder}"}, "cannot lie in"),
    ],
)
def test_init_makes_all_or_nothing(lead: Lead, changed: dict[str, str], said: str) -> None:
    filled = {key: value.format(folder=lead.folder) for key, value in changed.items()}
    code, told = lead.init(**filled)
    assert code in (1, 2)
    assert said in told
    assert left(lead.folder) == {"passphrase"}
    assert lead.passphrase.read_text() == f"{PASSPHRASE}\n"


@pytest.mark.parametrize(
    ("owner", "step"), [(Root, "save"), (Path, "replace"), (founding, "save_membership")]
)
def test_nothing_is_left_of_a_full_disk(
    lead: Lead, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, step, full)
    code, said = lead.init()
    assert (code, "No space left" in said) == (2, True)
    assert left(lead.folder) == {"passphrase"}


def test_an_existing_home_or_root_key_stays(lead: Lead) -> None:
    assert lead.init()[0] == 0
    before = {p: p.read_bytes() for p in lead.folder.rglob("*") if p.is_file()}
    assert lead.init()[0] == 2
    assert lead.init(home=str(lead.folder / "b"), operator_folder=str(lead.folder / "c"))[0] == 2
    assert {p: p.read_bytes() for p in lead.folder.rglob("*") if p.is_file()} == before


def test_a_passphrase_others_can_read_is_refused(lead: Lead) -> None:
    lead.passphrase.chmod(0o644)
    code, said = lead.init()
    assert (code, "chmod 600" in said) == (2, True)


def test_it_asks_twice_on_a_terminal(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed = iter([PASSPHRASE, "a slip", PASSPHRASE, PASSPHRASE])
    words = (
        *("consortium", "init", "--home", str(lead.home), "--root-key", str(lead.root)),
        *("--name", "alliance", "--gateway", "h:1", "--operator-folder", str(lead.operator)),
    )
    code, said = lead.type(*words)
    assert (code, "--passphrase-file" in said) == (2, True)  # no terminal
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))
    code, said = lead.type(*words)
    assert (code, "differ" in said) == (2, True)
    assert lead.type(*words)[0] == 0
    Root.open(lead.root, PASSPHRASE.encode())


def test_rotation_by_commands(lead: Lead) -> None:
    lead.init()
    fresh = str(lead.folder / "root-2.key")
    old = lead.show()["roots"]
    code, said = lead.rotate("--root-key", str(lead.root), "--new-root-key", fresh)
    assert code == 0, said
    shown = lead.show()
    assert [root["fingerprint"] for root in shown["roots"]][1:] == [old[0]["fingerprint"]]
    assert [holder["name"] for holder in shown["waiting"]] == ["ana"]
    text = lead.type("consortium", "show", "--home", str(lead.home))[1]
    assert "still on the old root:\n  operator ana" in text
    code, said = lead.rotate("--finish")
    assert (code, "operator 'ana'" in said) == (5, True)
    third = str(lead.folder / "root-3.key")
    code, said = lead.rotate("--root-key", fresh, "--new-root-key", third)
    assert (code, "--finish" in said) == (1, True)
    assert not Path(third).exists()


def test_a_passphrase_is_made_and_written_to_a_new_file(lead: Lead) -> None:
    made = lead.folder / "made"
    words = ("--generate-passphrase", "--passphrase-file", str(made))
    code, said = lead.init(passphrase_file=str(lead.passphrase))
    assert code == 0, said
    again = ("--home", str(lead.folder / "h"), "--root-key", str(lead.folder / "r.key"))
    people = ("--name", "b", "--gateway", "h:1", "--operator-folder", str(lead.folder / "bo"))
    code, said = lead.type("consortium", "init", *again, *people, *words, "--json")
    assert code == 0, said
    passphrase = made.read_text().strip()
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert passphrase not in said
    Root.open(lead.folder / "r.key", passphrase.encode())
    code, said = lead.type("consortium", "init", *again, *people, *words)  # all is there already
    assert (code, made.read_text().strip()) == (2, passphrase)

    fresh = ("--root-key", str(lead.root), "--new-root-key", str(lead.folder / "root-2.key"))
    code, said = lead.rotate(*fresh, "--generate-passphrase")
    assert (code, "no terminal" in said) == (2, True)
    new = lead.folder / "new"
    taken = ("--new-passphrase-file", str(made))
    code, said = lead.rotate(*fresh, "--generate-passphrase", *taken)
    assert (code, "is there already" in said) == (2, True)
    code, said = lead.rotate("--finish", "--generate-passphrase")
    assert (code, "need --new-root-key" in said) == (2, True)
    assert left(lead.folder) == {
        "home",
        "ana",
        "root.key",
        "passphrase",
        "h",
        "bo",
        "r.key",
        "made",
    }
    code, said = lead.rotate(*fresh, "--generate-passphrase", "--new-passphrase-file", str(new))
    assert code == 0, said
    Root.open(lead.folder / "root-2.key", new.read_text().strip().encode())


def test_a_passphrase_that_is_made_is_shown_once(
    lead: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    words = (
        *("consortium", "init", "--home", str(lead.home), "--root-key", str(lead.root)),
        *("--name", "alliance", "--gateway", "h:1", "--operator-folder", str(lead.operator)),
    )
    code, said = lead.type(*words, "--generate-passphrase", "-q")
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if "write it down" in line]
    Root.open(lead.root, line.rpartition(": ")[2].encode())


def test_a_failed_founding_leaves_no_passphrase(lead: Lead) -> None:
    made = lead.folder / "made"
    code, said = lead.type(
        *("consortium", "init", "--home", str(lead.home), "--root-key", "no/root.key"),
        *("--name", "alliance", "--gateway", "h:1", "--operator-folder", str(lead.operator)),
        *("--generate-passphrase", "--passphrase-file", str(made)),
    )
    assert (code, "cannot be written" in said) == (2, True)
    assert left(lead.folder) == {"passphrase"}


def test_an_old_root_key_is_rewritten_and_its_short_passphrase_still_opens_it(lead: Lead) -> None:
    from cryptography.hazmat.primitives import serialization

    lead.init()
    root = Root.open(lead.root, PASSPHRASE.encode())
    short = lead.folder / "short"
    short.write_text("8 of old")
    short.chmod(0o600)
    key = root._key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"8 of old"),
    )
    lead.root.write_bytes(key + pem_of([root.certificate]))
    words = ("--root-key", str(lead.root), "--passphrase-file", str(short))
    fresh = ("--new-root-key", str(lead.folder / "root-2.key"))
    code, said = lead.rotate(*words, *fresh)
    assert (code, "too short" in said) == (2, True)
    assert "was rewritten" in said
    assert json.loads(lead.root.read_text())["format"] == 2
    code, said = lead.rotate(*words, *fresh, "--new-passphrase-file", str(lead.passphrase))
    assert code == 0, said
    assert "was rewritten" not in said


def test_whoami_shows_what_sites_pin(lead: Lead) -> None:
    lead.init()
    words = ("whoami", "--as", str(lead.operator))
    with open_consortium(lead.home).registry() as registry:
        key = registry.operators()["ana"]
    code, said = lead.type(*words)
    assert (code, f"fingerprint  {key}" in said, "operator     ana" in said) == (0, True, True)
    day = datetime.fromtimestamp(time.time() + 20 * 86400, UTC).date()  # two thirds of 30
    assert f"commands renew it from {day}" in said
    assert lead.type(*words, "-q") == (0, f"{key}\n")
    code, said = lead.type(*words, "--json")
    told = json.loads(said)
    assert code == 0
    assert (told["name"], told["role"], told["fingerprint"], told["consortium"]) == (
        "ana",
        "operator",
        key,
        "alliance",
    )
    assert told["valid_from"] < time.time() < told["valid_until"]
    assert (told["gateway"], told["fault"]) == ("hub.example.org:9443", "")
    assert told["coordinator_key"] == open_consortium(lead.home).coordinator_key
    code, said = lead.type("whoami", "--as", str(lead.folder / "nobody"))
    assert (code, "fedfactory enrol" in said) == (2, True)


def test_whoami_of_an_ended_certificate_still_says_who(lead: Lead) -> None:
    lead.init()
    folder, issuer = lead.operator / "identity", open_consortium(lead.home).issuer()
    request = read_request(folder).csr_pem
    ended = issuer.sign(request, Role.OPERATOR, "ana", timedelta(seconds=-1))
    install_certificate(folder, ended, issuer.bundle_pem)
    code, said = lead.type("whoami", "--as", str(lead.operator))
    assert (code, "ask the consortium for a new invitation" in said, "sha256:" in said) == (
        1,
        True,
        True,
    )


def test_a_consortium_in_both_forms(lead: Lead) -> None:
    home = ("--home", str(lead.home))
    key = ("--passphrase-file", str(lead.passphrase), "--root-key", str(lead.root))
    words = ("--name", "alliance", "--gateway", "h:1", "--operator-folder", str(lead.operator))
    code, said = lead.type("consortium", "init", *home, *key, *words, "--json")
    assert code == 0, said
    made = json.loads(said)
    assert (made["consortium"], made["operator"]) == ("alliance", "lead")
    assert (made["home"], made["root_key"]) == (str(lead.home), str(lead.root))
    assert lead.type("consortium", "show", *home, "-q") == (0, f"{made['coordinator_key']}\n")
    rotate = ("consortium", "rotate", *home, *key)
    assert "signs until" in json.loads(lead.type(*rotate, "--issuer", "--json")[1])["told"]
    assert lead.type(*rotate, "--issuer", "-q") == (0, "")
    for flag, told in (("--json", None), ("-q", f"{lead.folder / 'b'}\n")):
        file = lead.folder / ("a" if told is None else "b")
        code, said = lead.type("consortium", "invite", file.name, *home, "--out", str(file), flag)
        assert (code, said if told else json.loads(said)["file"]) == (0, told or str(file))


def test_rotation_refuses_what_does_not_fit(lead: Lead) -> None:
    lead.init()
    before = (lead.home / "issuer" / "issuer.json").read_bytes()
    fresh = str(lead.folder / "root-2.key")
    other = lead.folder / "other.key"
    Root.new("alliance").save(other, PASSPHRASE.encode())
    wrong = lead.folder / "wrong"
    wrong.write_text("another passphrase")
    wrong.chmod(0o600)
    for words, said in (
        ((), "--root-key"),
        (("--root-key", str(lead.root)), "--new-root-key"),
        (("--root-key", str(other), "--new-root-key", fresh), "present root key"),
        (("--root-key", str(other), "--issuer"), "present root key"),
        (("--root-key", str(lead.folder / "no"), "--issuer"), "is not there"),
        (("--root-key", str(lead.root), "--new-root-key", str(other)), "never written over"),
        (("--root-key", str(lead.root), "--issuer", "--passphrase-file", str(wrong)), "passphrase"),
        (("--finish",), "no rotation is under way"),
        (("--finish", "--issuer"), "not allowed with"),
    ):
        code, told = lead.rotate(*words)
        assert (code != 0, said in told) == (True, True), (words, told)
    assert (lead.home / "issuer" / "issuer.json").read_bytes() == before
    assert not Path(fresh).exists()


def test_a_new_issuer_in_time(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "ISSUER_LIFETIME", timedelta(days=40))
    lead.init()
    (warning,) = lead.show()["warnings"]
    assert "rotate --issuer" in warning
    monkeypatch.undo()
    assert lead.rotate("--root-key", str(lead.root), "--issuer")[0] == 0
    assert lead.show()["warnings"] == []


def test_a_home_of_another_version_is_named(lead: Lead) -> None:
    lead.init()
    path = lead.home / "consortium.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2, "more": 1}))
    code, said = lead.type("consortium", "show", "--home", str(lead.home))
    assert (code, "has format 2" in said) == (2, True)
    path.write_text("{}")
    assert "damaged" in lead.type("consortium", "show", "--home", str(lead.home))[1]
    assert "consortium init" in lead.type("consortium", "show", "--home", str(lead.folder))[1]


def test_who_is_locked_out_is_invited_on_the_coordinators_host(
    lead: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead.init()
    out = lead.folder / "bo.json"
    words = ("consortium", "invite", "bo", "--home", str(lead.home), "--out", str(out))
    assert lead.type(*words)[0] == 0
    invitation = read_invitation(out)
    assert (invitation.role, invitation.name) == ("operator", "bo")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert invitation.token not in "".join(lead.outputs)
    assert lead.type(*words)[0] == 2  # the file is there
    code, said = lead.type(
        *("consortium", "invite", "ana", "--home", str(lead.home)),
        *("--out", str(lead.folder / "ana.json")),
    )
    assert (code, "enrolled already" in said) == (2, True)
    assert not (lead.folder / "ana.json").exists()


# ---- people enrol ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["operator", "viewer"])
def test_people_enrol(lead: Lead, role: str) -> None:
    with seat(lead.folder / "seat") as here:
        file = here.invitation_file(lead.folder / "bo.json", "bo", role)
        folder = lead.folder / "deep" / "bo"
        words = ("enrol", str(file), "--as", str(folder))
        assert lead.type(*words)[0] == 0
        assert lead.type(*words)[0] == 0  # again: nothing to do
        person = load_operator(folder)
        assert (person.name, person.role, person.gateway) == ("bo", Role(role), here.address)
        member = next(m for m in here.registry.members() if m.name == "bo")
        assert (member.role, member.status) == (role, "enrolled")
        token = json.loads(file.read_text())["token"]
        assert token not in "".join(lead.outputs)
        assert not [p for p in folder.rglob("*") if p.is_file() and token in p.read_text()]

        other = here.invitation_file(lead.folder / "cy.json", "cy", role)
        code, said = lead.type("enrol", str(other), "--as", str(folder))
        assert (code, f"is the folder of {role} 'bo'" in said) == (2, True)


def test_people_are_told_what_is_wrong(lead: Lead) -> None:
    with seat(lead.folder / "seat") as here:
        site = here.invitation_file(lead.folder / "cesga.json", "cesga")
        file = here.invitation_file(lead.folder / "bo.json", "bo", "operator")
        told = json.loads(file.read_text())
        away = lead.folder / "away.json"
        away.write_text(json.dumps({**told, "gateway": "127.0.0.1:1"}))
        altered = lead.folder / "altered.json"
        altered.write_text(json.dumps({**told, "name": "eve"}))
        blocked = lead.folder / "file"
        blocked.write_text("")
        for path, folder, code, said in (
            (site, "x", 2, "`site-agent enrol` takes it"),
            (away, "x", 6, "127.0.0.1:1 cannot be reached"),
            (altered, "x", 2, "altered"),
            (lead.folder / "no.json", "x", 2, "cannot be read"),
            (file, "file/x", 2, "Not a directory"),
        ):
            found, text = lead.type("enrol", str(path), "--as", str(lead.folder / folder))
            assert (found, said in text) == (code, True), text
        assert lead.type("enrol", str(file), "--as", str(lead.folder / "x"))[0] == 0
        found, text = lead.type("enrol", str(file), "--as", str(lead.folder / "y"))
        assert (found, "used already" in text) == (5, True)
        with pytest.raises(UsageError, match="fedfactory enrol"):
            load_operator(lead.folder / "y")
