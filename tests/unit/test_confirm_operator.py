"""`site-agent policy confirm-operator`: one pin is rewritten, every other letter of the file stays."""

from __future__ import annotations

import json
import stat
import time
from argparse import Namespace
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.identity.signing import Signer, fingerprint, new_signing_key
from site_agents.cli.confirming import pinned_operators
from site_agents.cli.main import main
from site_agents.person import person
from site_agents.policy import Confirmation, OperatorPin, PolicyFileError, parse_policy
from site_agents.policy.edit import with_pin
from site_agents.policy.pins import day_text, is_date
from site_agents.policy.text import render
from site_agents.policy_file import load_policy
from site_agents.revocations import Revocations
from site_agents.setup import make_home
from tests.policy_orders import OPERATOR_KEY, POLICY, pin
from tests.unit.test_revocations import KEYS, signed

YEAR_S = 365 * 86400


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    make_home(
        made,
        site="cesga",
        gateway_address="hub.example.org:443",
        data={"scans": {"kind": "npz", "path": "/nowhere.npz"}},
        policy_text=render(POLICY),
    )
    return made


def confirm(home: Path, *words: str) -> int:
    return main(["policy", "confirm-operator", *words, "--home", str(home)])


def test_it_writes_who_and_when_and_another_year(home: Path, capsys) -> None:
    path = home / "policy.yaml"
    commented = path.read_text().replace("operators:\n", "operators: # ours\n  # the lead\n")
    path.write_text(commented)
    path.chmod(0o640)
    before = load_policy(path)
    assert confirm(home, "ada", OPERATOR_KEY.upper().replace("SHA256", "sha256"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    until, today = day_text(time.time() + YEAR_S), day_text(time.time())
    assert (told["key"], told["until"]) == (OPERATOR_KEY, until)
    after = load_policy(path)
    expected = OperatorPin(
        key=OPERATOR_KEY, until=until, confirmed=Confirmation(by=person(), on=today)
    )
    assert after == replace(before, operators={"ada": expected})
    changed = [
        (a, b)
        for a, b in zip(commented.splitlines(), path.read_text().splitlines(), strict=True)
        if a != b
    ]
    assert len(changed) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert main(["audit", "show", "--home", str(home)]) == 0
    assert "operator_confirmed" in capsys.readouterr().out
    assert confirm(home, "ada", OPERATOR_KEY, "--until", "2999-12-31", "-q") == 0
    assert load_policy(path).operators["ada"].until == "2999-12-31"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eve", OPERATOR_KEY), "pins no operator 'eve' (ada)"),
        (("ada", "sha256:" + "1" * 64), "nothing was changed"),
        (("ada", OPERATOR_KEY[:-1]), "nothing was changed"),
        (("ada", OPERATOR_KEY, "--until", "2020-01-01"), "a day from today on"),
        (("ada", OPERATOR_KEY, "--until", "2027-02-30"), "a day from today on"),
        (("ada", OPERATOR_KEY, "--until", "soon"), "a day from today on"),
    ],
)
def test_what_does_not_fit_changes_nothing(home: Path, capsys, words, said) -> None:
    before = (home / "policy.yaml").read_bytes()
    assert confirm(home, *words) == 2
    assert said in capsys.readouterr().err
    assert (home / "policy.yaml").read_bytes() == before


def test_a_revoked_key_is_not_confirmed(home: Path, capsys) -> None:
    policy = replace(
        POLICY,
        coordinators={"hub": OPERATOR_KEY},
        operators={name: pin(KEYS[name]) for name in ("ana", "bob")},
    )
    (home / "policy.yaml").write_text(render(policy))
    Revocations(home, lambda _: None).take(signed("ana", "bob"))
    assert confirm(home, "bob", KEYS["bob"]) == 2
    assert "was revoked ('bob' by 'ana'" in capsys.readouterr().err
    assert main(["status", "--home", str(home)]) == 0
    assert "revoked     operator 'bob' by 'ana'" in capsys.readouterr().out
    assert main(["status", "--home", str(home), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["revoked_operators"]
    assert (told["operator"], told["by"], told["key"]) == ("bob", "ana", KEYS["bob"])
    (home / "revoked-operators.json").write_text("half")
    assert main(["status", "--home", str(home)]) == 0
    assert "no order is taken" in capsys.readouterr().out


def test_another_users_file_is_left_alone(home: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert confirm(home, "ada", OPERATOR_KEY) == 2
    assert "is another user's" in capsys.readouterr().err


def test_days_are_the_calendars() -> None:
    for number in range(-800_000 + 719_468, 2_900_000, 97):
        day = date(1970, 1, 1) + timedelta(days=number) if number >= -719_162 else None
        if day is not None:
            assert day_text(number * 86400.0) == day_text(number * 86400 + 86399.9) == str(day)
    for text in ("2027-02-29", "2100-02-29", "2027-04-31", "2027-13-01", "27-01-01", "2027-1-1"):
        assert not is_date(text)
    assert all(map(is_date, ("2028-02-29", "2000-02-29", "9999-12-31")))


KEY = fingerprint(Signer(new_signing_key()).public_key)
FORMS = (
    'ada: {key: "%s", until: "2999-12-31"}',
    "ada: {until: '2999-12-31',\n    key: %s}   # why",
    "ada:\n    key: %s\n    until: 2999-12-31  # end\n",
    "ada:\n      # why\n      key: %s\n      until: 2999-12-31\n      confirmed:\n        by: me\n        on: '2026-01-01'\n  # n",
)


@settings(max_examples=40, deadline=None)
@given(st.permutations(FORMS[:3]), st.sampled_from(FORMS), st.booleans())
def test_any_layout_keeps_all_else(others: list[str], form: str, is_last: bool) -> None:
    lines = [one.replace("ada", f"o{i}", 1) % OPERATOR_KEY for i, one in enumerate(others)]
    lines.insert(len(lines) if is_last else 0, form % KEY)
    body = "".join(f"  {line}\n" for line in lines)
    whole = render(POLICY)
    begin = whole.index("operators:\n") + len("operators:\n")
    text = whole[:begin] + body + whole[whole.index("\n\n", begin) + 1 :]
    policy = parse_policy(text, name="p", known_zone=lambda _: True)
    new = OperatorPin(key=KEY, until="2030-01-01", confirmed=Confirmation(by="a", on="2026-01-01"))
    changed = parse_policy(
        with_pin(text, "ada", new, file="p"), name="p", known_zone=lambda _: True
    )
    assert changed == replace(policy, operators={**policy.operators, "ada": new})
    with pytest.raises(PolicyFileError, match="no 'bob'"):
        with_pin(text, "bob", new, file="p")


def test_the_shell_offers_the_pinned_names(home: Path) -> None:
    asked = Namespace(home=home)
    assert pinned_operators("a", asked) == ["ada"]
    assert pinned_operators("b", asked) == []
    (home / "policy.yaml").write_text("half: [")
    assert pinned_operators("a", asked) == []
