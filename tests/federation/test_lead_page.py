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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.owned_processes import end_left, token
from tests.patience import HANG_S, until

PAGE = Path(__file__).parents[2] / "docs" / "lead.md"
BLOCK = re.compile(r"^```console (lead|site)( daemon)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HUB = "hub.example.org"
SITE = "cesga"
ADDRESSES = {"lead": "10.99.0.1", "site": "10.99.0.2"}

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
            timeout=HANG_S,
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
        return {**os.environ, "PATH": path, **token(self.folder.parent)}


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
                    daemon.wait(HANG_S)
        left = end_left(tmp_path)
        for host in made.values():
            host.unmake()
    assert left == []


def test_the_first_day_of_a_lead(hosts: dict[str, Host]) -> None:
    lead, site = hosts["lead"], hosts["site"]
    said = []
    for name, daemon, block in BLOCK.findall(PAGE.read_text()):
        if daemon:
            hosts[name].keep(block)
            until(_is_up(lead, name), 60, hosts[name].logs)
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
