"""`site-agent audit` and docs/verify_audit.py, used as the people who need them would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.plans import Anchor
from fedfactory.contracts.updates import Payload, Refusal, Update
from site_agents.audit import AuditChain
from site_agents.audit.entries import administrative, refused, released
from site_agents.cli.main import main
from site_agents.second_place import SecondPlace
from site_agents.setup import agent_text

SCRIPT = Path(__file__).parents[2] / "docs" / "verify_audit.py"
DIGEST = "sha256:" + "a" * 64


def _work(run: str, number: int) -> WorkKey:
    return WorkKey(
        coordinator="lead", run_id=run, round=number, kind="train", site="lumi", order_digest=DIGEST
    )


def _released(run: str, number: int) -> dict[str, Any]:
    update = Update(
        work=_work(run, number),
        payload=Payload(form="delta", blob=BlobRef(digest=DIGEST, bytes=400)),
        examples=479,
        metrics={"loss": 0.25 * number},
        seconds=2.0,
        privacy=None,
    )
    return released(
        update,
        destination="sha256:" + "b" * 64,
        delivery=number,
        lineage="ward-7",
        epsilon_charged=0.125,
        policy="sha256:" + "c" * 64,
        clause="egress: automatic",
        actor="agent",
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (tmp_path / "anchors").touch()
    AuditChain.create(home / "audit")
    (home / "agent.yaml").write_text(
        agent_text(
            site="lumi",
            gateway_address="lead.example.org:8443",
            data={"own": {"kind": "csv", "path": "/data/table.csv"}},
            second_place=tmp_path / "anchors",
        )
    )
    chain = AuditChain.open(home / "audit")
    for number in (1, 2):
        chain.append(_released("run-a", number))
    chain.append(_released("run-b", 1))
    chain.append(
        refused(
            Refusal(work=_work("run-b", 2), code="policy_limits"),
            destination="hub",
            delivery=1,
            finding="limits.rounds: too many",
        )
    )
    chain.append(administrative("paused", actor="maria \x1b[2J", reason="service window"))
    _anchor(tmp_path, chain.length, chain.head)
    chain.close()
    return home


def _anchor(folder: Path, length: int, head: str) -> None:
    anchor = Anchor(
        site="lumi",
        ledger="0f3a",
        ledger_sequence=0,
        ledger_head=DIGEST,
        audit_length=length,
        audit_head=head,
    )
    SecondPlace(folder / "anchors").record(anchor)


def _audit(home: Path, *words: str) -> int:
    return main(["audit", *words, "--home", str(home)])


def _script(export: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(export), str(home / "audit" / "audit.pub")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def _chain_file(home: Path) -> Path:
    return home / "audit" / "chain.jsonl"


# ---- verify and show -----------------------------------------------------------------------------


def test_a_chain_that_holds(home: Path, capsys: Any) -> None:
    assert _audit(home, "verify") == 0
    out = capsys.readouterr().out
    assert out.startswith("holds: 5 entries, head sha256:")
    assert "agrees, up to entry 5" in out


def test_an_edit_is_one_line_on_standard_error_that_names_the_line(home: Path, capsys: Any) -> None:
    raw = _chain_file(home).read_bytes()
    _chain_file(home).write_bytes(raw.replace(b'"loss":0.5', b'"loss":0.6'))
    for action in ("verify", "show"):
        assert _audit(home, action) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err == "site-agent: audit line 2 was altered: its entry is not the recorded one\n"


def test_a_chain_put_back_whole_with_its_head_is_told_by_the_second_place(
    home: Path, tmp_path: Path, capsys: Any
) -> None:
    older = {path: path.read_bytes() for path in (home / "audit").iterdir()}
    chain = AuditChain.open(home / "audit")
    chain.append({"event": "test"})
    _anchor(tmp_path, chain.length, chain.head)
    chain.close()
    for path, raw in older.items():
        path.write_bytes(raw)
    assert _audit(home, "verify") == 1
    assert "saw 6 entries" in (found := capsys.readouterr().err)
    assert "the chain is shorter" in found
    chain = AuditChain.open(home / "audit")  # and grown past it again
    chain.append({"event": "other"})
    chain.append({"event": "other"})
    chain.close()
    assert _audit(home, "verify") == 1
    assert "the chain was rewritten" in capsys.readouterr().err


def test_what_a_crash_left_is_told_and_is_no_failure(home: Path, capsys: Any) -> None:
    with _chain_file(home).open("ab") as file:
        file.write(b'{"at":"2026')
    assert _audit(home, "verify") == 0
    assert "11 bytes of a line that was never finished" in capsys.readouterr().out


def test_without_a_second_place_that_is_said(home: Path, capsys: Any) -> None:
    text = (home / "agent.yaml").read_text().splitlines()
    kept = [line for line in text if not line.startswith("second_place")]
    (home / "agent.yaml").write_text("\n".join(kept) + "\n")
    assert _audit(home, "verify") == 0
    assert "no second place" in capsys.readouterr().out


def test_show_prints_the_newest_entries_and_nothing_that_steers_a_terminal(
    home: Path, capsys: Any
) -> None:
    assert _audit(home, "show", "--last", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["4", "5"]
    assert 'refused by "agent"' in lines[0]
    assert 'finding="limits.rounds: too many"' in lines[0]
    assert "\x1b" not in lines[1]
    assert 'paused by "maria \\u001b[2J" reason="service window"' in lines[1]


def test_show_of_one_run(home: Path, capsys: Any) -> None:
    assert _audit(home, "show", "--run", "run-b") == 0
    assert [line[0] for line in capsys.readouterr().out.splitlines()] == ["3", "4"]
    assert _audit(home, "show", "--run", "none") == 0
    assert capsys.readouterr().out == "no entries\n"


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("look",),
        ("show", "--last", "0"),
        ("show", "--last", "x"),
        ("export", "out.jsonl", "--since", "yesterday"),
        ("export", "out.jsonl", "--withhold", "epsilon_chargd"),
        ("export", "out.jsonl", "--since", "2100-01-01"),
        ("export", "."),
        ("export", "no/such/folder/out.jsonl"),
    ],
)
def test_bad_words_are_one_line_and_leave_no_file(
    home: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    before, chain = sorted(tmp_path.iterdir()), _chain_file(home).read_bytes()
    assert main(["audit", *words, *(["--home", str(home)] if words else [])]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
    if "2100-01-01" not in words:  # what was never exported is not recorded as exported
        assert _chain_file(home).read_bytes() == chain


# ---- export --------------------------------------------------------------------------------------


def _exported(home: Path, tmp_path: Path, *words: str) -> Path:
    export = tmp_path / "export.jsonl"
    assert _audit(home, "export", str(export), *words) == 0
    return export


def test_an_export_verifies_and_holds_the_record_of_itself(home: Path, tmp_path: Path) -> None:
    export = _exported(home, tmp_path)
    found = _script(export, home)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("holds: entries 1 to 6 as of ")
    *_, own, _end = map(json.loads, export.read_text().splitlines())
    assert own["fields"]["event"]["value"] == "exported"
    chain = AuditChain.open(home / "audit")
    assert chain.head in found.stdout
    chain.close()


def test_a_later_part_verifies(home: Path, tmp_path: Path) -> None:
    at = [json.loads(line)["at"] for line in _chain_file(home).read_text().splitlines()]
    first = at.index(at[2]) + 1
    found = _script(_exported(home, tmp_path, "--since", at[2]), home)
    assert found.returncode == 0
    assert found.stdout.startswith(f"holds: entries {first} to 6")


def test_what_is_withheld_is_not_in_the_file_which_verifies_all_the_same(
    home: Path, tmp_path: Path
) -> None:
    export = _exported(
        home, tmp_path, "--run", "run-a", "--withhold", "lineage", "--withhold", "epsilon_charged"
    )
    assert _script(export, home).returncode == 0
    text = export.read_text()
    for word in ("ward-7", "0.125", "run-b", "maria"):
        assert word not in text, word
    salts = [json.loads(line)["salt"] for line in _chain_file(home).read_text().splitlines()]
    assert not any(salt in text for salt in salts)
    assert '"run-a"' in text


def _tampered(export: Path, change: Any) -> None:
    lines = export.read_text().splitlines(keepends=True)
    change(lines)
    export.write_text("".join(lines))


def _edit(place: int, old: str, new: str) -> Any:
    def change(lines: list[str]) -> None:
        assert old in lines[place]
        lines[place] = lines[place].replace(old, new)

    return change


def _swap(lines: list[str]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def _withhold_all(lines: list[str]) -> None:
    lines[1] = json.dumps(json.loads(lines[1]) | {"fields": None, "withheld": None}) + "\n"


def _shorter_with_its_end_made_to_fit(lines: list[str]) -> None:
    del lines[-2]
    last, end = json.loads(lines[-2]), json.loads(lines[-1])
    lines[-1] = json.dumps(end | {"length": last["index"], "head": json.loads(lines[-2])["leaf"]})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_edit(1, '"value":400', '"value":4'), "entry 2 was altered"),
        (_edit(1, '"value":"agent"', '"value":"maria"'), "entry 2 was altered"),
        (_edit(0, '"index":1', '"index":2'), "entry 3 does not follow"),
        (_edit(2, '"at":"20', '"at":"21'), "entry 4 does not follow"),
        (lambda lines: lines.pop(1), "entry 2 does not follow"),
        (lambda lines: lines.pop(0), "not those that were signed"),
        (lambda lines: lines.pop(-2), "the last entry is not 6"),
        (lambda lines: lines.pop(-1), "KeyError"),
        (lambda lines: lines.clear(), "ValueError"),
        (_swap, "entry 2 does not follow"),
        (_withhold_all, "not those that were signed"),
        (_shorter_with_its_end_made_to_fit, "the last entry is not 5"),
        (_edit(-1, '"at":"20', '"at":"21'), "InvalidSignature"),
        (lambda lines: lines.insert(2, "{\n"), "JSONDecodeError"),
    ],
)
@pytest.mark.parametrize("optimise", ["", "1"])
def test_a_tampered_export_fails_and_says_what_is_wrong(
    home: Path, tmp_path: Path, change: Any, word: str, optimise: str
) -> None:
    export = _exported(home, tmp_path)
    _tampered(export, change)
    found = _script(export, home, PYTHONOPTIMIZE=optimise)
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith("FAILED: ")
    assert word in found.stderr


def test_another_sites_key_does_not_verify_an_export(home: Path, tmp_path: Path) -> None:
    export = _exported(home, tmp_path)
    AuditChain.create(tmp_path / "other" / "audit")
    assert _script(export, tmp_path / "other").returncode == 1


def test_an_export_is_not_written_over_another(home: Path, tmp_path: Path, capsys: Any) -> None:
    export = _exported(home, tmp_path)
    raw = export.read_bytes()
    assert _audit(home, "export", str(export)) == 2
    assert "is there already" in capsys.readouterr().err
    assert export.read_bytes() == raw


def test_a_chain_that_does_not_hold_is_not_exported(
    home: Path, tmp_path: Path, capsys: Any
) -> None:
    raw = _chain_file(home).read_bytes()
    # A changed signature alone: opening a chain does not look at those, exporting does.
    place = raw.index(b'"signature":"') + 20
    _chain_file(home).write_bytes(
        raw[:place] + (b"A" if raw[place : place + 1] != b"A" else b"B") + raw[place + 1 :]
    )
    assert _audit(home, "export", str(tmp_path / "export.jsonl")) == 1
    assert "line 1 was altered" in capsys.readouterr().err
    assert not list(tmp_path.glob("*export*"))


def test_the_script_has_thirty_lines() -> None:
    assert sum(1 for line in SCRIPT.read_text().splitlines() if line.strip()) <= 30
