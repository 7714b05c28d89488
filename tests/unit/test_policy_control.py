"""pause, resume, drain, kill: a file that the agent reads, whatever else is up or down."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedfactory.contracts.errors import EnvironmentFailedError
from site_agents import control
from site_agents.audit import AuditChain
from site_agents.cli.main import main
from tests.patience import prompt

STATE = Path(control.CONTROL_FOLDER) / control.STATE_FILE


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home that the commands take for one, with an audit chain."""
    (tmp_path / "agent.yaml").write_text("site: here\n")
    AuditChain.create(tmp_path / "audit")
    monkeypatch.setenv("FEDFACTORY_HOME", str(tmp_path))
    return tmp_path


def events(home: Path) -> list[str]:
    return [line for line in (home / "audit" / "chain.jsonl").read_text().splitlines() if line]


def test_nobody_ever_said_anything(home):
    assert control.state(home) == control.ControlState(name="running", by="", at=0.0, reason="")


def test_what_was_said_last_holds_and_says_who_when_and_why(home):
    before = time.time()
    for name in ("paused", "draining", "killed"):
        control.set(home, name, by="ada", reason="maintenance")
        state = control.state(home)
        assert (state.name, state.by, state.reason) == (name, "ada", "maintenance")
        assert before <= state.at <= time.time()
    control.clear(home, by="bob", reason="done")
    assert (control.state(home).name, control.state(home).by) == ("running", "bob")


def test_the_file_is_the_users_alone_and_nothing_else_is_left(home):
    control.set(home, "paused", by="ada", reason="")
    path = home / STATE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == [control.STATE_FILE]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\x00" * 100,
        b'{"name":"running"}',
        b'{"at":0,"by":"","name":"RUNNING","reason":""}',
        b'{"at":0,"by":"","name":"running","reason":"","more":1}',
        b'{"at":NaN,"by":"","name":"running","reason":""}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_counts_as_killed(home, raw):
    (home / STATE).parent.mkdir()
    (home / STATE).write_bytes(raw)
    state = control.state(home)
    assert state.name == "killed"
    assert "site-agent resume" in state.reason
    assert main(["resume"]) == 0
    assert control.state(home).name == "running"


def test_a_word_that_others_could_write_counts_as_killed(home):
    control.set(home, "running", by="ana", reason="")
    path = home / "control" / "state.json"
    path.chmod(0o660)
    assert control.state(home).name == "killed"
    assert f"chmod go-w {path}" in control.state(home).reason
    path.unlink()
    path.parent.chmod(0o777)
    assert control.state(home).name == "killed"  # somebody may have taken a word away


def test_something_else_in_its_place_counts_as_killed(home):
    (home / STATE).mkdir(parents=True)
    assert control.state(home).name == "killed"


def test_each_reading_takes_less_than_a_fraction_of_a_second(home):
    control.set(home, "paused", by="ada", reason="")
    with prompt(1):
        for _ in range(100):
            control.state(home)


def test_it_is_on_the_disk_before_it_has_its_name_and_the_name_after(home, monkeypatch):
    order = []
    sync, rename = os.fsync, Path.replace

    def syncing(handle):
        order.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def renaming(self, target):
        order.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", renaming)
    control.set(home, "paused", by="ada", reason="")
    assert order == ["file", "rename", "folder"]


def test_what_cannot_be_written_changes_nothing(home, monkeypatch):
    control.set(home, "paused", by="ada", reason="")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFailedError, match=r"No space left.*end its process"):
        control.clear(home, by="ada", reason="")
    assert control.state(home).name == "paused"
    assert [entry.name for entry in (home / STATE).parent.iterdir()] == [control.STATE_FILE]


@pytest.mark.parametrize(
    ("command", "name", "event"),
    [
        ("pause", "paused", "paused"),
        ("drain", "draining", "drained"),
        ("kill", "killed", "killed"),
        ("resume", "running", "resumed"),
    ],
)
def test_each_command_says_its_word_and_records_it(home, capsys, command, name, event):
    control.set(home, "paused", by="ada", reason="")
    assert main([command, "--reason", "power cut"]) == 0
    state = control.state(home)
    assert (state.name, state.reason) == (name, "power cut")
    assert state.by
    (line,) = events(home)
    assert f'"event":"{event}"' in line.replace(" ", "")
    assert "power cut" in line
    assert "none does now" in capsys.readouterr().out


def test_kill_works_without_an_audit_chain_and_resume_does_not(home, capsys):
    (home / "audit" / "head.json").unlink()
    assert main(["kill"]) == 0
    assert "not in the audit chain" in capsys.readouterr().err
    assert control.state(home).name == "killed"
    assert main(["resume"]) == 1
    assert control.state(home).name == "killed"


def test_the_environment_does_not_choose_who_it_was(home, monkeypatch):
    for name in ("LOGNAME", "USER", "USERNAME"):
        monkeypatch.setenv(name, "mallory")
    assert main(["pause"]) == 0
    assert control.state(home).by != "mallory"


def test_a_kill_from_another_process_is_seen_within_a_second(home):
    command = [sys.executable, "-c", "from site_agents.cli.main import main; main(['kill'])"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        seen = None
        while process.poll() is None or seen is None:
            if control.state(home).name == "killed":
                seen = seen or time.time()
            assert process.poll() in (None, 0)
            time.sleep(0.01)
    assert seen - control.state(home).at < 1


def test_no_reader_ever_sees_half_a_word(home):
    """Written over and over by another process, it is always one of the two whole words."""
    code = (
        "import sys; from pathlib import Path; from site_agents import control\n"
        "for i in range(150):\n"
        "    control.set(Path(sys.argv[1]), 'paused' if i % 2 else 'draining', by='a', reason='x' * 3000)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(home)]) as process:
        seen = set()
        while process.poll() is None:
            seen.add(control.state(home).name)
    assert process.returncode == 0
    assert seen <= {"running", "paused", "draining"}
    assert {"paused", "draining"} <= seen
