"""What an agent's log says at its start, before any order comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from site_agents.policy import policy_text
from site_agents.setup import make_home


@pytest.mark.rule("42")
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_a_policy_that_others_could_write_is_told_at_the_start(mode: int, tmp_path: Path) -> None:
    home = tmp_path / "home"
    text = policy_text(coordinators={}, operators={}, data={}, tasks={})
    make_home(home, site="cesga", gateway_address="localhost:1", data={}, policy_text=text)
    (home / "policy.yaml").chmod(mode)
    command = [sys.executable, "-m", "site_agents.cli.main", "tick", "--home", str(home)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr
    assert "not enrolled" in said
    told = "no work is taken until the policy holds" in said and "chmod go-w" in said
    assert told == (mode == 0o660)
