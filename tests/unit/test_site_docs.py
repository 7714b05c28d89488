"""docs/site-administrator.md says what the commands do; its commands and its unit hold."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from site_agents.cli.main import COMMANDS, main
from site_agents.config import load_agent_config
from site_agents.doctor.finding import Finding
from site_agents.doctor.house import examine_policy

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "site-administrator.md").read_text()


def test_every_command_of_the_page_is_there():
    named = set(re.findall(r"site-agent ([a-z]+)", PAGE))
    assert named <= set(COMMANDS), named - set(COMMANDS)
    assert {"init", "doctor", "run", "tick", "status"} <= named


def test_the_pages_first_command_makes_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    block = PAGE.partition("```sh\n")[2].partition("export ")[0].replace("\\\n", " ")
    words = shlex.split(block)
    assert words[:2] == ["site-agent", "init"]
    monkeypatch.chdir(tmp_path)
    np.savez("digits.npz", x=np.zeros((5, 64), np.float32), y=np.arange(5))
    here = {"~/fedfactory": tmp_path / "home", "/mnt/other/anchors": tmp_path / "anchors"}
    words = [str(here.get(word, word)) for word in words[1:]]
    assert main(words) == 2  # the page says: made before, empty
    assert "touch" in capsys.readouterr().err
    (tmp_path / "anchors").touch()
    assert main(words) == 0
    assert "site-agent enrol" in capsys.readouterr().out
    monkeypatch.setenv("FEDFACTORY_HOME", str(tmp_path / "home"))
    assert main(["status"]) == 0
    policy, found = examine_policy(load_agent_config(tmp_path / "home", []))
    assert policy is not None
    assert policy.without_dp is None
    assert found == [Finding("ok", "policy", "holds: digits; differential privacy is required")]


def test_the_units_keys():
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DOCS / "systemd" / "site-agent.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"].split()[-2:] == ["%h/venv/bin/site-agent", "run"]
    assert service["Restart"] == "on-failure"
    assert "User" not in service


def test_the_pages_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (DOCS / target).exists(), target
