"""Every command of both programs takes --json and -q, or is named here with the reason."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.dispatch import Program
from fedfactory.cli.main import EXIT_CODES, PROGRAM
from site_agents.cli.main import EXIT_CODES as SITE_EXIT_CODES
from site_agents.cli.main import PROGRAM as SITE_PROGRAM

BOTH = {"--json", "-q"}
# What a command does not take, and why it has no meaning there.
WITHOUT = {
    "fedfactory completion": (BOTH, "prints code for a shell"),
    "fedfactory coordinator": (BOTH, "a daemon: it logs; `fedfactory runs --json` tells"),
    "fedfactory privacy plan": ({"-q"}, "prints figures: no id, no file"),
    "fedfactory version": ({"-q"}, "prints versions: no id, no file"),
    "site-agent probe": (BOTH, "prints a patch for git"),
    "site-agent run": (BOTH, "a daemon: it logs; `site-agent status --json` tells"),
    "site-agent tick": (BOTH, "the same, once, for cron"),
}


class _FoundError(Exception):
    """A command is about to parse its words."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def parser_of(program: Program, command: str, monkeypatch: pytest.MonkeyPatch) -> Arguments:
    def found(parser: Arguments) -> None:
        raise _FoundError(parser)

    monkeypatch.setattr(Arguments, "_answer_shell", found)
    with pytest.raises(_FoundError) as caught:
        program._command(command)([])
    parser = caught.value.parser
    assert isinstance(parser, Arguments)
    return parser


def commands_of(
    name: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield each command that can be run, sub-commands of it in its place."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for action in nested:
        for word, sub in action.choices.items():
            yield from commands_of(f"{name} {word}", sub)
    if not any(action.required for action in nested):
        yield name, parser


@pytest.mark.parametrize("program", [PROGRAM, SITE_PROGRAM], ids=lambda p: p.name)
def test_every_command_takes_both_forms(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = {}
    for command in program.commands:
        top = parser_of(program, command, monkeypatch)
        for name, parser in commands_of(f"{program.name} {command}", top):
            taken = {flag for action in parser._actions for flag in action.option_strings}
            if without := BOTH - taken:
                lacking[name] = without
            assert ("-q" in taken) == ("--quiet" in taken), name
    expected = {name: flags for name, (flags, _) in WITHOUT.items()}
    assert lacking == {k: v for k, v in expected.items() if k.startswith(f"{program.name} ")}


SLOW = ("torch", "flwr", "grpc", "hydra", "omegaconf", "opacus", "pyarrow", "sklearn", "rich")
TAB = """
import sys
from argparse import Namespace
from fedfactory.cli.arguments import Arguments
from fedfactory.cli.completers import known_sites, machine_names
from fedfactory.cli.composing import override_words
from fedfactory.cli.main import PROGRAM
from site_agents.cli.main import PROGRAM as SITE_PROGRAM

def answered(parser):
    raise LookupError

Arguments._answer_shell = answered
count = 0
for program in (PROGRAM, SITE_PROGRAM):
    for command in program.commands:
        try:
            program._command(command)([])
        except LookupError:
            count += 1
assert count == len(PROGRAM.commands) + len(SITE_PROGRAM.commands)
assert known_sites("", Namespace(run="last")) and machine_names("lumi")
assert override_words("rounds.") and override_words("task.m") and override_words("task=")
print(*sorted(set(sys.argv[1:]) & set(sys.modules)))
"""


def test_what_tab_needs_of_any_command_loads_nothing_slow(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TAB, *SLOW],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("\n", "")


DOCS = Path(__file__).parents[2] / "docs"


def test_the_lead_page_names_what_takes_less() -> None:
    text = (DOCS / "lead.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| neither in |")]
    for name in WITHOUT:
        word = name.removeprefix("fedfactory ").removeprefix("site-agent ")
        assert f"`{word}`" in row or f"`site-agent {word}`" in row, name


@pytest.mark.parametrize(
    ("page", "told"), [("lead.md", EXIT_CODES), ("site-administrator.md", SITE_EXIT_CODES)]
)
def test_a_pages_exit_codes_are_those_of_the_help(page: str, told: str) -> None:
    table = (DOCS / page).read_text(encoding="utf-8").partition("| exit code | means |")[2]
    listed = re.findall(r"^\| (\d+) \| ", table.partition("\n\n")[0], re.MULTILINE)
    assert sorted(listed) == sorted(re.findall(r"(?:^|  )(\d+) ", told, re.MULTILINE))


# ---- a site's day, in both forms -----------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a table and the words of `init`; commands run in it, on its home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDFACTORY_HOME", str(tmp_path / "home"))
    (tmp_path / "words").write_text(
        "init --home home --site cesga --gateway 127.0.0.1:1 --data mine=t.csv"
        " --public-size 300 --task tabular"
    )
    return tmp_path


def said(line: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert SITE_PROGRAM.main(line.split()) == code, capsys.readouterr()
    return capsys.readouterr().out


def test_a_sites_commands_as_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def document(line: str, code: int = 0) -> dict[str, object]:
        found: dict[str, object] = json.loads(said(f"{line} --json", capsys, code))
        return found

    table = document("data generate tabular t.csv --count 300")
    assert table == {"file": "t.csv", "rows": 300, "task": "tabular"}
    made = document((site / "words").read_text())
    assert made == {
        "home": str(site / "home"), "site": "cesga", "gateway": "127.0.0.1:1"
    }  # fmt: skip
    misfits = document("policy check", 1)["misfits"]
    assert isinstance(misfits, list)
    assert said("policy check -q", capsys, 1).splitlines() == misfits
    (site / "order.json").write_text("{}")
    explained = document("policy explain order.json", 2)
    assert (explained["allowed"], explained["refused"]) == (False, "bad_order")
    assert document("pause")["was"] == "running"
    assert document("resume")["control"] == "running"
    assert document("audit verify")["entries"] == len(document("audit show")["entries"])  # type: ignore[arg-type]
    assert document("audit export out")["file"] == "out"
    assert document("ledger move --reason moved")["ledger"] == str(site / "home")
    lineages = document("ledger")["lineages"]
    assert isinstance(lineages, list)
    assert [one["lineage"] for one in lineages] == ["mine"]


def test_a_sites_commands_quietly(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said("data generate tabular t.csv --count 300 -q", capsys) == "t.csv\n"
    assert said(f"{(site / 'words').read_text()} -q", capsys) == f"{site / 'home'}\n"
    for silent in ("pause", "resume", "approvals", "status"):
        assert said(f"{silent} -q", capsys) == "", silent
    assert said("audit verify -q", capsys).startswith("sha256:")
    assert said("audit export out -q", capsys) == "out\n"
    assert said("ledger -q", capsys) == "mine\n"
    assert said("sites -q lumi-g", capsys) == "lumi-g\n"
    (site / "order.json").write_text("{}")
    assert "REFUSED bad_order" in said("policy explain order.json -q", capsys, 2)


def test_a_source_that_does_not_fit_is_told_quietly_too(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said("data generate tabular t.csv --count 300", capsys)
    said((site / "words").read_text(), capsys)
    assert said("data check mine -q --task timeseries", capsys, 1).startswith("timeseries: ")
