"""The commands: what help shows, what --cfg prints, exit codes, and what is not imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from fedfactory.choices import choices, groups
from fedfactory.cli import local as local_command
from fedfactory.cli.dispatch import guarded
from fedfactory.cli.main import COMMANDS, PROGRAM, main
from fedfactory.cli.version import PACKAGES
from fedfactory.contracts.errors import (
    RefusedError,
    RunFailedError,
    RunStoppedError,
    UnreachableError,
)
from fedfactory.rounds.log import encode_event
from fedfactory.run_schema import RunSchema
from site_agents.cli.main import PROGRAM as SITE_PROGRAM
from tests.run_plans import run_plan
from tests.unit.operator_runs import SITES, events, summary_of


def test_help_lists_every_command_and_exit_code(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command} " in shown
    for code in (
        "0 done",
        "2 wrong name",
        "3 the run failed",
        "4 the run was stopped",
        "5 refused",
        "6 coordinator not reachable",
        "130",
    ):
        assert code in shown


@pytest.mark.parametrize("program", [PROGRAM, SITE_PROGRAM], ids=lambda p: p.name)
def test_every_command_of_the_table_is_there_and_has_help(program, capsys):
    for name in program.commands:
        try:
            code = program.main([name, "--help"])
        except SystemExit as end:  # argparse's own
            code = end.code
        assert code in (0, None), name
        assert f"usage: {program.name} {name}" in capsys.readouterr().out


def test_no_command_shows_help_and_is_wrong(capsys):
    assert main([]) == 2
    assert "usage: fedfactory COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_local_help_shows_every_choice_and_key(flag, capsys):
    assert main(["local", flag]) == 0
    shown = capsys.readouterr().out
    for group in groups("run"):
        for choice in choices(group):
            assert f"{group}={choice}" in shown
    for key in RunSchema.__dataclass_fields__:
        assert f"{key}:" in shown or f"{key}=" in shown
    for nested in ("partition.alpha=0.3", "task.megabytes=100", "quorum: null", "lumi-g"):
        assert nested in shown


@pytest.mark.parametrize("words", [["--cfg", "job"], ["-c", "job"], ["--cfg=job"]])
def test_cfg_prints_the_composed_yaml(words, capsys):
    assert main(["local", "rounds=3", *words, "task=echo"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["rounds"]["number"] == 3
    assert shown["task"] == {"name": "echo", "megabytes": 100}


def test_the_config_reaches_the_run_and_its_exit_code_comes_back(monkeypatch):
    from fedfactory.local import run as local_run

    seen = []
    monkeypatch.setattr(local_run, "run_local", lambda config, form: seen.append(config) or 4)
    assert main(["local", "rounds=3"]) == 4
    assert seen[0].rounds == 3
    assert yaml.safe_load(seen[0].composed_yaml)["rounds"]["number"] == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunFailedError("too few sites"), 3),
        (RunStoppedError("asked to"), 4),
        (RefusedError("no site could begin"), 5),
        (UnreachableError(), 6),
    ],
)
def test_known_errors_become_one_line_and_their_code(error, code, capsys):
    def command() -> int:
        raise error

    assert guarded(command) == code
    assert capsys.readouterr().err == f"fedfactory: {error.public_message}\n"


def test_an_interrupt_is_130(monkeypatch):
    def interrupted(_overrides, _form, *, show):
        raise KeyboardInterrupt

    monkeypatch.setattr(local_command, "_local", interrupted)
    assert main(["local"]) == 130


@pytest.mark.parametrize(
    ("module", "word"),
    [
        ("fedfactory.cli.main", "--help"),
        ("fedfactory.cli.main", "version"),
        ("site_agents.cli.main", "--help"),
        ("site_agents.cli.main", "sites"),
    ],
)
@pytest.mark.parametrize(("device", "code"), [("a closed pipe", 141), ("/dev/full", 1)])
def test_output_that_nobody_takes_is_no_traceback(module, word, device, code):
    if device == "/dev/full":
        out = os.open(device, os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, word],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(out)
    assert done.returncode == code
    assert done.stderr.count("\n") == (1 if code == 1 else 0), done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_one_line(capsys, tmp_path):
    assert guarded(lambda: len((tmp_path / "gone").read_text())) == 1
    assert capsys.readouterr().err == f"fedfactory: {tmp_path}/gone: No such file or directory\n"


def test_letters_that_the_terminal_lacks_are_replaced(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from fedfactory.cli.dispatch import guarded; guarded(lambda: print('a\u2588b') or 0)",
        ],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"a?b\n")


def test_version_as_json(capsys):
    assert main(["version", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {*PACKAGES, "python"}


def test_report_in_both_forms(capsys, tmp_path):
    told = json.loads(summary_of())
    told["model"]["file"] = "model.safetensors"
    (tmp_path / "summary.json").write_text(json.dumps(told))
    assert main(["report", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    assert main(["report", str(tmp_path), "-q"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/model.safetensors\n"


def test_cfg_as_json(capsys):
    assert main(["local", "rounds=3", "--cfg", "job", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"]["number"] == 3


def test_version(capsys):
    assert main(["version"]) == 0
    assert capsys.readouterr().out.split()[0] == "fedfactory"


@pytest.mark.parametrize(
    "target",
    ["no_such_package.Strategy", "flwr.serverapp.strategy.Nope", "collections.OrderedDict"],
)
def test_a_target_that_is_no_strategy_is_refused_before_anything_starts(target, tmp_path):
    words = ["local", "strategy=custom", f"strategy._target_={target}"]
    done = subprocess.run(
        [sys.executable, "-m", "fedfactory.cli.main", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"strategy._target_={target}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def completions(line: str, program: str = "fedfactory") -> list[str]:
    """Return what the shell is told for a line with the cursor at its end."""
    reader, writer = os.pipe()
    env = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    module = {"fedfactory": "fedfactory.cli.main", "site-agent": "site_agents.cli.main"}
    done = subprocess.run(
        ["bash", "-c", f'exec 8>&{writer}; exec "$@"', "-", sys.executable, "-m", module[program]],
        env=env,
        pass_fds=[writer],
        capture_output=True,
        check=False,
    )
    os.close(writer)
    with os.fdopen(reader) as file:
        found = file.read()
    assert done.stderr == b"", done.stderr
    return found.split("\n") if found else []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("fedfactory re", {"report", "resume", "revoke"}),
        ("fedfactory stop x --n", {"--now"}),
        ("fedfactory revoke x --role ", {"site", "operator", "viewer"}),
        ("fedfactory model ", {"get"}),
        ("fedfactory run privacy=", {"privacy=dp_sgd", "privacy=none"}),
        ("fedfactory run --det", {"--detach"}),
        ("fedfactory run rounds.", {"rounds.quorum=", "rounds.deadline_s="}),
        ("fedfactory local lr=1 mom", {"momentum="}),
        ("fedfactory local task.mo", {"task.model="}),
        ("fedfactory local partition=d", {"partition=dirichlet"}),
        ("fedfactory logs x l", {"lumi-g"}),
        ("fedfactory nosuch ", set()),
    ],
)
def test_the_shell_completes(line, found):
    if found:
        assert {word for word in completions(line) if not word.startswith("-h")} >= found
    else:
        with pytest.raises(AssertionError, match="unknown command"):
            completions(line)


def test_the_shell_completes_the_other_program_and_runs_here(tmp_path, monkeypatch):
    assert set(completions("site-agent a", "site-agent")) == {"approvals", "approve", "audit"}
    assert "--json" in completions("site-agent status --", "site-agent")
    (tmp_path / "runs" / "20261121-120000-ab12").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert {"20261121-120000-ab12", "last"} <= set(completions("fedfactory watch "))
    assert "lumi-g" in completions("site-agent sites l", "site-agent")
    for run, sites in (("20261121-120000-ab12", SITES), ("20261120-120000-cd34", ("other",))):
        folder = tmp_path / "runs" / run
        folder.mkdir(exist_ok=True)
        began = replace(events()[0], plan=run_plan(events()[0].plan, sites=sites))
        (folder / "events.jsonl").write_text(f"{encode_event(0, began)}\n")
    assert sited("fedfactory logs last ") == set(SITES)
    assert sited("fedfactory logs 20261120 ") == {"other"}
    assert sited("fedfactory explain last --site ") == set(SITES)
    assert sited("fedfactory revoke ") == {*SITES, "other"}


def sited(line: str) -> set[str]:
    return {word for word in completions(line) if not word.startswith("-")}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_code_for_the_shell(shell, capsys):
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert (
        "complete -o nospace -o default -o bashdefault -F _python_argcomplete fedfactory site-agent"
        in code
    )
    done = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick():
    """The least CPU time of five, with all that the interpreter itself needs: it waits for nobody."""
    taken = []
    for _ in range(5):
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "fedfactory.cli.main", "--help"], capture_output=True, check=True
        )
        after = os.times()
        taken.append(sum(after[2:4]) - sum(before[2:4]))  # of children, user and system
    assert min(taken) < 0.15, taken


HEAVY = ("torch", "flwr", "grpc", "sklearn", "scipy", "rich", "cryptography", "pyarrow")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("fedfactory.cli.main", ["local", "--cfg", "job"]),
        ("fedfactory.cli.main", ["local", "--help"]),
        ("fedfactory.cli.main", ["local", "rounds=many"]),
        ("site_agents.cli.main", ["sites"]),
        ("fedfactory.cli.main", ["run", "--help"]),
        ("fedfactory.cli.main", ["runs", "--as", "/nowhere", "--limit", "none"]),
        ("fedfactory.cli.main", ["completion", "zsh"]),
    ],
)
def test_a_quick_answer_imports_nothing_heavy(module, words):
    code = (
        f"import sys, {module} as m; m.main({words!r});"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
