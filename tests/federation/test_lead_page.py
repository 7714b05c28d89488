"""docs/lead.md, done as it stands: a lead and a site as two hosts that a wire joins, nothing else.

Each host is a network namespace; the one thing carried from one to the other by hand is the file
that the page says to send.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "lead.md"
BLOCK = re.compile(r"^```console (lead|site)( daemon)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HUB = "hub.example.org"
SITE = "cesga"
ADDRESSES = {"lead": "10.99.0.1", "site": "10.99.0.2"}
MARK = "LC_FEDFACTORY_TEST_PAGE"

pytestmark = [
    pytest.mark.federation,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None,
        reason="two hosts on one machine need root and iproute2",
    ),
]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One machine of the page: its network namespace, its work folder, its daemons."""

    name: str
    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def space(self) -> str:
        return f"fedfactory-{self.name}-{os.getpid()}"

    def make(self) -> None:
        self.folder.mkdir()
        _ip("netns", "add", self.space)
        hosts = Path("/etc/netns") / self.space / "hosts"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(f"127.0.0.1 localhost\n{ADDRESSES['lead']} {HUB}\n")
        _ip("-n", self.space, "link", "set", "lo", "up")

    def join(self, end: str) -> None:
        _ip("link", "set", end, "netns", self.space)
        _ip("-n", self.space, "addr", "add", f"{ADDRESSES[self.name]}/24", "dev", end)
        _ip("-n", self.space, "link", "set", end, "up")

    def unmake(self) -> None:
        subprocess.run(["ip", "netns", "del", self.space], check=False, capture_output=True)
        shutil.rmtree(Path("/etc/netns") / self.space, ignore_errors=True)

    def do(self, block: str) -> str:
        """Run a block as its reader would, in one shell that keeps its variables."""
        kept = self.folder / ".shell"
        script = f". {kept} 2>/dev/null || true\nset -a\n{block}\nexport -p > {kept}\n"
        done = subprocess.run(
            ["ip", "netns", "exec", self.space, "bash", "-e", "-c", script],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self._environment(),
            timeout=150,
        )
        told = f"{block}\n{done.stdout}\n{done.stderr}\n{self.logs()}"
        assert done.returncode == 0, told
        assert "Traceback" not in done.stdout + done.stderr, told
        return done.stdout

    def keep(self, block: str) -> None:
        """Run a block in the background until the end."""
        with (self.folder / f"daemon-{len(self.daemons)}.log").open("wb") as log:
            self.daemons.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.space, "bash", "-c", f"exec {block.strip()}"],
                    cwd=self.folder,
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def logs(self) -> str:
        return "\n".join(log.read_text()[-2000:] for log in self.folder.glob("daemon-*.log"))

    def _environment(self) -> dict[str, str]:
        # The folder of the interpreter holds the programs; the link that a venv's is, not followed.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {
            **os.environ, "PATH": path, MARK: str(self.folder.parent), "OMP_NUM_THREADS": "1",
        }  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    made = {name: Host(name, tmp_path / name) for name in ADDRESSES}
    ends = {name: f"ff{name[0]}{os.getpid() % 100000}" for name in made}
    try:
        for host in made.values():
            host.make()
        _ip("link", "add", ends["lead"], "type", "veth", "peer", "name", ends["site"])
        for name, host in made.items():
            host.join(ends[name])
        yield made
    finally:
        for host in reversed(made.values()):
            for daemon in host.daemons:
                daemon.terminate()
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(20)
        left = _left(tmp_path)
        for host in made.values():
            host.unmake()
    assert left == []


def _left(folder: Path) -> list[str]:
    """Return what still runs 10 s after the daemons were asked to end; end it."""
    end = time.monotonic() + 10
    while (found := _marked(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    told = [" ".join(process.cmdline()) for process in found]
    for process in found:
        process.kill()
    return told


def _marked(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["environ", "status"])
        if (process.info["environ"] or {}).get(MARK) == str(folder)
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def _within(seconds: float, there: Callable[[], bool], host: Host) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, host.logs()
        time.sleep(0.3)


@pytest.mark.timeout(480)
def test_the_first_day_of_a_lead(hosts: dict[str, Host]) -> None:
    lead, site = hosts["lead"], hosts["site"]
    said = []
    for name, daemon, block in BLOCK.findall(PAGE.read_text()):
        if daemon:
            hosts[name].keep(block)
            _within(60, _is_up(lead, name), hosts[name])
            continue
        said.append(hosts[name].do(block))
        sent = lead.folder / f"{SITE}.invitation"
        if sent.exists() and not (site.folder / sent.name).exists():
            shutil.copy(sent, site.folder)  # the page: "send it"
    told = "\n".join(said)
    assert "completed" in told
    assert "revoked" in told
    assert (lead.folder / "shared.safetensors").stat().st_size > 0


def _is_up(lead: Host, name: str) -> Callable[[], bool]:
    if name == "lead":
        return (lead.folder / "coordinator" / "gateway.json").exists
    return lambda: '"connected": true' in lead.do("fedfactory sites --json")
