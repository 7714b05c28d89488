"""Tests do not see where and by whom they are started; their limits follow the load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import patience
from tests.conftest import BASE
from tests.isolation import FIXED, UMASK, clean_environment, own_place
from tests.owned_processes import end_left, owned, runs, token
from tests.patience import LoadClock, contention, cores, prompt, until

ROOT = Path(__file__).parents[2]
HOSTILE = {
    "HOME": "/nonexistent",
    "USER": "nobody",
    "FEDFACTORY_HOME": "/x",
    "FEDFACTORY_OPERATOR": "/y",
    "XDG_CONFIG_HOME": "/z",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "GIT_DIR": "/nowhere/.git",
    "PYTHONPATH": "/nowhere",
    "PIP_INDEX_URL": "http://127.0.0.1:9",
    "SLURM_JOB_ID": "1",
    "NOTIFY_SOCKET": "/nowhere",
    "NO_COLOR": "1",
    "FORCE_COLOR": "1",
    "COLUMNS": "40",
    "LANG": "C",
    "LC_ALL": "C",
    "TZ": "Asia/Tokyo",
    "OMP_NUM_THREADS": "64",
}


def test_a_test_works_in_an_empty_folder_that_is_not_the_checkout(own_place: Path) -> None:
    assert Path.cwd() == own_place
    assert list(own_place.iterdir()) == []
    assert not own_place.is_relative_to(ROOT)


def test_a_test_has_an_empty_home_that_is_not_the_users() -> None:
    home = Path.home()
    assert list(home.iterdir()) == []
    assert home.is_relative_to(BASE)


def test_no_variable_of_the_users_reaches_a_test_or_what_it_starts() -> None:
    kept = clean_environment({**HOSTILE, "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1"}, BASE)
    assert {k: v for k, v in kept.items() if HOSTILE.get(k) == v} == {}
    assert (kept["PATH"], kept["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1")
    assert HOSTILE.keys() & os.environ.keys() <= {*FIXED, "HOME"}
    assert {k: os.environ[k] for k in FIXED} == FIXED
    listed = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    assert "FEDFACTORY_" not in listed
    assert f"HOME={BASE}" in listed


def test_temporary_files_lie_where_the_user_says_also_when_said_relative_to_a_folder() -> None:
    kept = clean_environment({"TMPDIR": "scratch"}, BASE)
    assert kept["TMPDIR"] == str(Path.cwd() / "scratch")


def test_what_a_test_changes_is_undone(tmp_path: Path) -> None:
    before = dict(os.environ), Path.cwd()
    with own_place(tmp_path) as work:
        (work / "runs").mkdir()
        os.environ["FEDFACTORY_HOME"] = "/x"
        del os.environ["PATH"]
        os.chdir("/")
    assert (dict(os.environ), Path.cwd()) == before
    assert not work.exists()


def test_new_files_have_the_modes_that_the_tests_expect(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~UMASK


def test_a_hostile_environment_changes_no_result(tmp_path: Path) -> None:
    """The suite's own pytest, started by a user whose shell and folder are as bad as can be."""
    for name in ("runs", "outputs", "coordinator"):
        (tmp_path / name / "20261201-000000-aaaa").mkdir(parents=True)
    tests = ROOT / "tests" / "unit"
    done = subprocess.run(
        [
            *(sys.executable, "-I", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)),
            *("-k", "empty or no_variable or new_files or (shell_completes and logs)"),
            *(str(tests / "test_what_tests_see.py"), str(tests / "test_cli.py")),
        ],
        cwd=tmp_path,
        env={**HOSTILE, "PATH": os.environ["PATH"]},
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ---- processes ---------------------------------------------------------------------------------

# A daemon that leaves its parent, and one that also drops its environment while its parent lives.
DAEMON = ["sh", "-c", "sleep 60 & exec sleep 0"]
BARE = ["sh", "-c", "env -i sleep 60 & echo $!; exec sleep 60"]


def test_a_process_that_left_its_parent_is_known_and_one_of_another_test_is_not(
    tmp_path: Path,
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    subprocess.run(DAEMON, env={**os.environ, **token(mine)}, check=True)
    beside = subprocess.Popen(["sleep", "60"], env={**os.environ, **token(other)})
    try:
        (left,) = owned(mine)
        assert left.pid != beside.pid
        assert end_left(mine, 0.1) == ["sleep 60"]
        until(lambda: not owned(mine))
        assert [process.pid for process in owned(other)] == [beside.pid]
    finally:
        beside.kill()
        beside.wait()
    assert owned(other) == []


def test_a_descendant_without_the_token_is_known(tmp_path: Path) -> None:
    with subprocess.Popen(
        BARE, env={**os.environ, **token(tmp_path)}, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        bare = int(parent.stdout.readline())
        assert {process.pid for process in owned(tmp_path)} == {parent.pid, bare}
        assert len(end_left(tmp_path, 0.1)) == 2
    until(lambda: not runs(bare))


# ---- limits ------------------------------------------------------------------------------------


def test_contention_counts_the_runnable_tasks_for_each_core(tmp_path: Path) -> None:
    loadavg = tmp_path / "loadavg"
    for runnable, expected in ((0, 1.0), (1, 1.0), (12, 12 / cores())):
        loadavg.write_text(f"0.00 0.00 0.00 {runnable}/100 4711\n")
        assert contention(loadavg) == max(1.0, expected)


def test_a_quota_of_the_control_group_counts_as_fewer_cores(tmp_path: Path) -> None:
    usable = len(os.sched_getaffinity(0))
    assert cores(tmp_path) == usable  # no such file
    for text, expected in (("max 100000", usable), ("50000 100000", 0.5)):
        (tmp_path / "cpu.max").write_text(f"{text}\n")
        assert cores(tmp_path) == expected


def test_a_limit_stretches_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "contention", lambda: 100.0)
    clock = LoadClock()
    time.sleep(0.2)
    assert 0.002 <= clock.read() < 0.02
    with prompt(0.1):
        time.sleep(0.2)
    late = threading.Event()
    timer = threading.Timer(0.2, late.set)
    timer.start()
    assert until(late.is_set, 0.1) < 0.1
    timer.join()


def test_a_limit_ends_the_wait_and_tells_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "contention", lambda: 1.0)
    with pytest.raises(AssertionError, match=r"not within 0.05 s .*\nthe log"):
        until(lambda: False, 0.05, lambda: "the log")
    with pytest.raises(AssertionError, match="expected less than"), prompt(0.05):
        time.sleep(0.1)
