"""One agent to a home, by a lock that the kernel frees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.lease import Lease, LeaseHeldError, holder_of

HOLD = (
    "import sys, time; from pathlib import Path; from fedfactory.lease import Lease\n"
    "lease = Lease(Path(sys.argv[1]), 'agent', 'run'); print('held', flush=True); time.sleep(60)\n"
)


def _other(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_second_one_is_refused_and_told_who_holds_it(tmp_path: Path):
    with Lease(tmp_path, "agent", "run"):
        with pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} .*\(run\)"):
            Lease(tmp_path, "agent", "tick")
        holder = holder_of(tmp_path, "agent")
        assert holder is not None
        assert (holder.pid, holder.mode) == (os.getpid(), "run")
    assert holder_of(tmp_path, "agent") is None
    Lease(tmp_path, "agent", "tick").close()


def test_another_process_holds_it_until_it_is_killed(tmp_path: Path):
    other = _other(tmp_path)
    with pytest.raises(LeaseHeldError, match=f"process {other.pid} "):
        Lease(tmp_path, "agent", "run")
    _kill(other)
    assert holder_of(tmp_path, "agent") is None
    with Lease(tmp_path, "agent", "run"):
        assert holder_of(tmp_path, "agent") is not None


def test_looking_takes_nothing_and_makes_nothing(tmp_path: Path):
    assert holder_of(tmp_path, "agent") is None
    assert not (tmp_path / "agent.lock").exists()
    with Lease(tmp_path, "agent", "run"):
        for _ in range(3):
            assert holder_of(tmp_path, "agent") is not None


def test_a_holder_that_has_not_said_who_it_is_still_holds(tmp_path: Path):
    with Lease(tmp_path, "agent", "run"):
        (tmp_path / "agent.lock").write_text("")
        holder = holder_of(tmp_path, "agent")
        assert holder is not None
        assert holder.pid == 0
        with pytest.raises(LeaseHeldError, match="has not said"):
            Lease(tmp_path, "agent", "run")


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path):
    with pytest.raises(EnvironmentFailedError, match=r"agent\.lock cannot be written"):
        Lease(tmp_path / "missing", "agent", "run")


def test_a_full_disk_hides_who_holds_it_and_nothing_more(tmp_path: Path):
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    other = subprocess.Popen(
        [sys.executable, "-c", full + HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(LeaseHeldError, match="has not said who it is"):
        Lease(tmp_path, "agent", "run")
    _kill(other)
    Lease(tmp_path, "agent", "run").close()
