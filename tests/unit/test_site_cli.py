"""`site-agent` finds each of its commands, and loads none to list them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import site_agents.cli
from site_agents.cli.main import COMMANDS, main
from tests.patience import HANG_S


def test_the_table_names_every_command_there_is() -> None:
    folder = Path(site_agents.cli.__path__[0])
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "main"}
    there = {name for name in names if hasattr(import_module(f"site_agents.cli.{name}"), "main")}
    assert there == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_tells_how_it_is_used(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: site-agent {command}" in capsys.readouterr().out


def test_help_loads_no_command() -> None:
    code = "import sys; from site_agents.cli.main import main; main(['--help']); \
print(*sorted(m for m in sys.modules if m == 'numpy' or m.startswith('site_agents.')))"
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=HANG_S
    ).stdout
    assert all(f"  {command} " in said for command in COMMANDS)
    assert said.splitlines()[-1] == "site_agents.cli site_agents.cli.main"
