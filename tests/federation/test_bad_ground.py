"""A real agent whose ground gives way: a full or read-only disk, a wrong clock, a locked ledger.

It refuses by code, lives on, and works again by itself once the cause is gone.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.federation.conftest import Federation, Launcher, agent_of, home_of
from tests.patience import until

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
SITE = "lumi"
HOLDS = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""
DISK_BYTES = 24_000_000


def _may_mount() -> bool:
    try:
        return (
            subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(not _may_mount(), reason="no user namespaces: no disk to fill"),
]


class Ground:
    """One site of a run without end; its home lies on a small disk that it alone sees."""

    def __init__(self, federation: Federation, clock: Path) -> None:
        self._federation = federation
        self.home = home_of(agent_of(federation, SITE))
        self.clock = clock
        home, command = shlex.quote(str(self.home)), f"{sys.executable} -m site_agents.cli.main"
        saved = shlex.quote(str(self.home.with_name("saved")))
        federation.restart(
            agent_of(federation, SITE), *NAMESPACE, "sh", "-c",
            f"cp -a {home} {saved} && mount -t tmpfs -o size={DISK_BYTES} none {home} &&"
            f" cp -a {saved}/. {home} &&"
            f' {command} ledger --home {home} move --reason test && exec "$@"', "sh",
            PYTHONPATH=str(clock),
        )  # fmt: skip
        self.agent = federation.restarted[-1]
        until(self._is_moved, 30)
        self.heard = len(federation.events())

    def _is_moved(self) -> bool:
        assert self.agent.poll() is None, "the agent ended"
        return self.seen.stat().st_dev != self.home.stat().st_dev

    @property
    def seen(self) -> Path:
        """The agent's home, as it sees it."""
        return Path(f"/proc/{self.agent.pid}/root{self.home}")

    def inside(self) -> tuple[str, ...]:
        """The words that give a command the agent's disks."""
        return ("nsenter", "--target", str(self.agent.pid), "--user", "--mount")

    def answers(self) -> list[str]:
        """What the coordinator heard of the site since it was last asked: `update`, or a code."""
        events = self._federation.events()
        new, self.heard = events[self.heard :], len(events)
        found = []
        for event in new:
            if event["event"] == "ReplyAccepted" and event["update"]["work"]["site"] == SITE:
                found.append("update")
            elif event["event"] == "ReplyRefused" and event["site"] == SITE:
                found.append(event["code"])
        return found

    def hears(self, *wanted: str, seconds: float = 30) -> None:
        """Wait for an answer of these."""
        heard: list[str] = []

        def found() -> bool:
            assert self.agent.poll() is None, "the agent ended"
            heard.extend(self.answers())
            return bool(set(heard) & set(wanted))

        until(found, seconds, lambda: f"{set(heard)}\n{self._log()[-3000:]}")

    def refuses(self, *codes: str) -> None:
        """Wait for a refusal by one of these codes; from then on nothing else comes."""
        self.hears(*codes)
        self.answers()
        self.hears(*codes)

    def _log(self) -> str:
        return (self._federation.out.parent / "restarted.log").read_text()

    def said(self, *words: str) -> None:
        """Hold the agent's log to what it must tell a person."""
        log = self._log()
        assert any(word in log for word in words), log[-3000:]
        assert "Traceback" not in log, log[-6000:]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def ground(launch_shared: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    federation = launch_shared(
        "rounds=100000", "local_epochs=1", "evaluate=false", "rounds.quorum=1", "rounds.deadline_s=30",
        "task=tabular", "privacy=dp_sgd", "privacy.target_epsilon=null",
        "privacy.noise_multiplier=20",
    )  # fmt: skip
    federation.wait_for_round(1)
    clock = tmp_path_factory.mktemp("clock")
    shutil.copy(Path(__file__).parent / "clock" / "sitecustomize.py", clock)
    return Ground(federation, clock)


@pytest.fixture(autouse=True)
def works_before_and_after(ground: Ground) -> Iterator[None]:
    ground.hears("update", seconds=60)
    yield
    ground.answers()
    ground.hears("update", seconds=60)
    ground.said("connected")


def test_a_full_disk(ground: Ground) -> None:
    ballast = ground.seen / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            file.writelines(bytes(4096) for _ in range(DISK_BYTES // 4096))
        # Who meets it first, the records or the base model's file, is chance.
        ground.refuses("books_broken", "transfer_failed")
        ground.said("No space left on device", "disk is full")
    finally:
        ballast.unlink()


def test_a_read_only_home(ground: Ground) -> None:
    home = str(ground.home)
    _run(*ground.inside(), "mount", "--bind", home, home)
    try:
        _run(*ground.inside(), "mount", "-o", "remount,bind,ro", home)
        ground.refuses("books_broken")
        ground.said("Read-only file system")
    finally:
        _run(*ground.inside(), "umount", home)


def test_a_clock_that_jumps_back(ground: Ground) -> None:
    wrong = ground.clock / "ahead_s"
    wrong.write_text("-3600")
    try:
        ground.refuses("books_broken")
        ground.said("behind the ledger's last entry")
    finally:
        wrong.unlink()


def test_a_ledger_held_by_another_process(ground: Ground) -> None:
    # Through the agent's own mounts: SQLite would follow /proc/PID/root to ours.
    command = [*ground.inside(), sys.executable, "-c", HOLDS, str(ground.home / "ledger.sqlite")]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"held\n"
            ground.refuses("books_broken")
            ground.said("another process has held it")
        finally:
            assert other.stdin is not None
            other.stdin.close()
