"""A site's home appears whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from fedfactory.contracts.errors import UsageError
from fedfactory.identity.enrolment import load_identity
from site_agents import setup
from site_agents.assembly import open_books, sources_of
from site_agents.cli.main import main
from site_agents.config import AgentConfig, load_agent_config
from site_agents.enrolling import enrol, pending
from site_agents.ledger import Ledger
from site_agents.person import person
from site_agents.policy import DataRule, policy_text
from site_agents.policy_check import task_misfits
from site_agents.policy_file import load_policy
from site_agents.setup import make_home
from tests.policy_orders import pin
from tests.unit.identity_rig import seat

KEY = "sha256:" + "a" * 64
POLICY = policy_text(
    coordinators={"hub": KEY},
    operators={"ana": pin(KEY)},
    data={"mine": DataRule(lineage="people", public_size=500, unit="row")},
    tasks={"digits": "mine"},
)
HERE = ("--home", "{}", "--site", "cesga", "--gateway", "h:1")
MINE = ("--data", "a=b.csv")
SLIP = ("--public-size", "9", "--task", "digit")


def made(home: Path, **changed: object) -> AgentConfig:
    values: dict[str, object] = {
        "site": "cesga",
        "gateway_address": "hub.example.org:443",
        "data": {"mine": {"kind": "npz", "path": "/data/mine.npz"}},
        "policy_text": POLICY,
    }
    return make_home(home, **{**values, **changed})  # type: ignore[arg-type]


def test_a_home_with_books_that_open(tmp_path: Path):
    config = made(tmp_path / "a" / "home")
    assert config.home == tmp_path / "a" / "home"
    assert config == load_agent_config(config.home, [])
    books = open_books(config)
    books.check(None)
    anchor = books.anchor()
    books.close()
    assert (anchor.site, anchor.ledger_sequence) == ("cesga", 2)
    assert not (config.home / "identity").exists()  # keys are made by enrolling
    assert [(name, one.lineage) for name, one in sources_of(config)().items()] == [
        ("mine", "people")
    ]
    assert os.listdir(tmp_path / "a") == ["home"]


def test_nobody_else_may_look_in(tmp_path: Path):
    old = os.umask(0o000)
    try:
        config = made(tmp_path / "home")
    finally:
        os.umask(old)
    private = [path for path in config.home.rglob("*") if path.suffix != ".pub"]
    for path in (config.home, *private):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_an_existing_home_is_refused_and_untouched(tmp_path: Path):
    config = made(tmp_path / "home")
    before = {path: path.stat().st_mtime_ns for path in config.home.rglob("*")}
    with pytest.raises(UsageError, match="is there already"):
        made(tmp_path / "home", site="lumi")
    assert {path: path.stat().st_mtime_ns for path in config.home.rglob("*")} == before
    (tmp_path / "empty").mkdir()
    assert made(tmp_path / "empty").site == "cesga"


@pytest.mark.parametrize(
    "changed",
    [
        {"site": "nowhere"},
        {"gateway_address": "hub"},
        {"policy_text": POLICY.replace("dp: required", "dp: perhaps")},
        {"data": {"mine": {"path": "x"}}},
    ],
)
def test_nothing_is_left_of_one_that_does_not_hold(tmp_path: Path, changed: dict[str, object]):
    ledger = tmp_path / "ledger"
    with pytest.raises(UsageError):
        made(tmp_path / "home", ledger=ledger, **changed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("owner", "step"), [(setup, "load_agent_config"), (Ledger, "create"), (Path, "replace")]
)
def test_nothing_is_left_of_one_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, step, full)
    with pytest.raises(UsageError, match="No space left"):
        made(tmp_path / "home", ledger=tmp_path / "ledger")
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_elsewhere(tmp_path: Path):
    config = made(tmp_path / "home", ledger=tmp_path / "local" / "cesga")
    assert (tmp_path / "local" / "cesga" / "ledger.sqlite").exists()
    assert not (tmp_path / "home" / "ledger.sqlite").exists()
    open_books(config).close()
    with pytest.raises(UsageError):  # it is somebody's already
        made(tmp_path / "other", ledger=tmp_path / "local" / "cesga")
    open_books(config).close()
    assert not (tmp_path / "other").exists()


def test_the_books_name_the_user_whatever_the_environment_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    home = str(made(tmp_path / "home").home)
    assert main(["audit", "export", str(tmp_path / "out"), "--home", home]) == 0
    assert main(["audit", "show", "--home", home]) == 0
    assert main(["ledger", "--json", "--home", home]) == 0
    shown = capsys.readouterr().out
    assert "somebody-else" not in shown
    assert shown.count(person()) >= 2


def test_init_by_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = tmp_path / "t.csv"
    data.write_text("age,label\n1,2\n")
    home = tmp_path / "home"
    words = [
        *("init", "--home", str(home), "--site", "cesga", "--gateway", "hub.example.org:443"),
        *("--coordinator", f"hub={KEY}", "--operator", f"ana={KEY}"),
        *("--data", f"mine={data}", "--public-size", "20000", "--unit", "age"),
        *("--task", "tabular", "--lineage", "people", "--second-place", "syslog"),
    ]
    assert main(words) == 0
    assert "site-agent enrol FILE" in capsys.readouterr().out
    config, policy = load_agent_config(home, []), load_policy(home / "policy.yaml")
    assert config.data == {"mine": {"kind": "csv", "path": str(data), "unit": "age"}}
    assert policy.data["mine"] == DataRule(lineage="people", public_size=20000, unit="age")
    assert policy.tasks["tabular"].source == "mine"
    assert list(policy.tasks["tabular"].parameters) == ["label", "numeric", "categorical"]
    assert task_misfits(policy) == []
    assert policy.without_dp is None
    assert policy.delta == pytest.approx(5e-6)
    assert main(words) == 2


def test_init_by_invitation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with seat(tmp_path / "seat") as here:
        file = here.invitation_file(tmp_path / "cesga.invitation", "cesga")
        person = here.invitation_file(tmp_path / "bo.invitation", "bo", "operator")
        home = tmp_path / "home"
        words = ["init", "--home", str(home), "--invitation", str(file)]
        assert main([*words, "--site", "lumi"]) == 2
        assert main(["init", "--home", str(home), "--invitation", str(person)]) == 2
        said = capsys.readouterr().err
        assert "the invitation is for the site 'cesga'" in said
        assert "`fedfactory enrol` takes it" in said
        assert not home.exists()

        assert main(words) == 0
        assert "by another way" in capsys.readouterr().out
        config, policy = load_agent_config(home, []), load_policy(home / "policy.yaml")
        assert (config.site, config.gateway_address) == ("cesga", here.address)
        assert policy.coordinators == {"alliance": here.consortium.coordinator_key}
        pinned = {name: pin.key for name, pin in policy.operators.items()}
        assert pinned == here.registry.operators()
        assert pending(home)
        enrol(home)  # as the agent does when it starts
        load_identity(home / "identity")
        assert not pending(home)
        token = json.loads(file.read_text())["token"].encode()
        assert not [p for p in home.rglob("*") if p.is_file() and token in p.read_bytes()]
        monkeypatch.setenv("FEDFACTORY_HOME", str(home))
        assert main(["enrol", str(file)]) == 0  # again: it is enrolled with it


def test_enrol_at_a_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with seat(tmp_path / "seat") as here:
        lumi = here.invitation_file(tmp_path / "lumi.json", "lumi")
        person = here.invitation_file(tmp_path / "bo.json", "bo", "operator")
        cesga = here.invitation_file(tmp_path / "cesga.json", "cesga")
        free = POLICY.replace("hub", "elsewhere")
        home = made(tmp_path / "home", policy_text=free, gateway_address=here.address).home
        other = POLICY.replace("hub", "alliance")
        pinned = made(tmp_path / "pinned", policy_text=other, gateway_address=here.address).home
        for file, where, said in (
            (lumi, home, "says 'cesga'"),
            (person, home, "not for a site"),
            (tmp_path / "no.json", home, "cannot be read"),
            (cesga, pinned, "which is right"),
            (cesga, tmp_path, "holds no agent.yaml"),
        ):
            assert main(["enrol", str(file), "--home", str(where)]) in (1, 2)
            assert said in capsys.readouterr().err
        assert main(["enrol", str(cesga), "--home", str(home)]) == 0
        assert main(["enrol", str(cesga), "--home", str(home)]) == 0
        load_identity(home / "identity")
        second = made(tmp_path / "second", gateway_address=here.address).home
        assert main(["enrol", str(cesga), "--home", str(second)]) == 5
        assert "used already" in capsys.readouterr().err
        away = made(tmp_path / "away", gateway_address="127.0.0.1:1").home
        assert main(["enrol", str(cesga), "--home", str(away)]) == 6
        assert "127.0.0.1:1 cannot be reached" in capsys.readouterr().err


def test_init_asks_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    home = tmp_path / "home"
    monkeypatch.setattr("sys.stdin", Terminal(f"{home}\ncesga\nhub.example.org:443\n"))
    assert main(["init"]) == 0
    assert load_agent_config(home, []).site == "cesga"
    monkeypatch.setattr("sys.stdin", Terminal(f"{home}2\n\n"))
    assert main(["init"]) == 2
    assert not (tmp_path / "home2").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--home is missing"),
        (["--home", "{}", "--site", "cesga"], "--gateway is missing"),
        (
            ["--home", "{}", "--site", "cesga", "--gateway", "h:1", "--task", "digits"],
            "need --data",
        ),
        (
            ["--home", "{}", "--site", "cesga", "--gateway", "h:1", "--data", "a=b.xls"],
            "ends in .csv",
        ),
        (
            ["--home", "{}", "--site", "cesga", "--gateway", "h:1", "--coordinator", "hub"],
            "NAME=KEY",
        ),
        (
            ["--home", "{}", "--site", "cesga", "--gateway", "h:1", "--coordinator", "hub=MD5"],
            "coordinators",
        ),
        (
            ["--home", "{}", "--site", "cesga", "--gateway", "h:1", *MINE, "--public-size", "0"],
            "whole number above 0",
        ),
        (
            [*("--home", "{}", "--site", "cesga", "--gateway", "h:1"), *MINE, "--public-size", "9"],
            "b.csv is not there",
        ),
        (
            [*HERE, "--second-place", "/no/such/folder/anchors"],
            "there is no folder /no/such/folder; mount",
        ),
        ([*HERE, "--second-place", "/tmp/no-such-anchors"], "touch /tmp/no-such-anchors"),
        ([*HERE, "--second-place", "anchors"], "expected an absolute path, or syslog"),
        (
            [*("--home", "{}", "--site", "cesga", "--gateway", "h:1"), *MINE, *SLIP],
            "did you mean 'digits'",
        ),
    ],
)
def test_init_names_what_is_missing_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
):
    home = tmp_path / "home"
    if "b.xls" in "".join(words):
        words = [*words, "--public-size", "3"]
    assert main(["init", *(word.format(home) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
