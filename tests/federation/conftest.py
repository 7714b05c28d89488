"""Runs of real processes, shared by the tests of this folder: one run, many looks at it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.owned_processes import end_left, find, lives, owned, token
from tests.patience import HANG_S, until


@dataclass
class Federation:
    """A `fedfactory local` under way: its process and its run folder."""

    process: subprocess.Popen[str]
    out: Path
    restarted: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def wait(self, seconds: float = 200) -> int:
        until(lambda: self.process.poll() is not None, seconds, self.output)
        return self.process.wait()

    def wait_for_round(self, number: int, seconds: float = 150) -> None:
        metrics = self.out / "metrics.jsonl"

        def reached() -> bool:
            done = metrics.exists() and len(metrics.read_text().splitlines()) >= number
            assert done or self.process.poll() is None, self.output()
            return done

        until(reached, seconds, self.output)

    def tree(self) -> list[psutil.Process]:
        """Every process of this federation but `fedfactory local` itself."""
        return [p for p in owned(self.out.parent) if p.pid != self.process.pid]

    def find(self, *words: str) -> list[psutil.Process]:
        return find(self.tree(), *words)

    def restart(self, agent: psutil.Process, *before: str, **env: str) -> None:
        """Kill a site's agent; start it by hand, its command line and environment the same.

        `before` are words to put before the command, `env` variables to add.
        """
        words, its_env = agent.cmdline(), agent.environ()
        agent.kill()
        until(lambda: not lives(agent), 10)
        with (self.out.parent / "restarted.log").open("ab") as log:
            again = subprocess.Popen(
                [*before, *words],
                env={**its_env, **env},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        self.restarted.append(again)

    def end_restarted(self) -> None:
        """End what `restart` started, and wait for it."""
        for agent in self.restarted:
            assert agent.stdin is not None
            agent.stdin.close()
        for agent in self.restarted:
            agent.wait(HANG_S)

    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text())

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / "events.jsonl").read_text().splitlines()]

    def output(self) -> str:
        return (self.out.parent / "console.txt").read_text()


class Launcher:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.started: list[Federation] = []

    def __call__(self, *overrides: str, env: dict[str, str] | None = None) -> Federation:
        self._count += 1
        base = self._folder / f"f{self._count}"
        base.mkdir()
        out = base / "run"
        console = (base / "console.txt").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "fedfactory.cli.main", "local", f"out={out}", *overrides],
            stdout=console,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=base,
            env={**os.environ, **token(base), **(env or {})},
        )
        console.close()
        federation = Federation(process, out)
        self.started.append(federation)
        return federation


def _sweep(launcher: Launcher) -> list[str]:
    """Stop what still runs; return the orphans of federations that had ended by themselves."""
    for federation in launcher.started:
        if federation.process.poll() is None:
            federation.process.send_signal(signal.SIGTERM)
            try:
                federation.wait(20)
            except AssertionError:
                federation.process.kill()
                federation.process.wait()
        federation.end_restarted()
    return [left for federation in launcher.started for left in end_left(federation.out.parent)]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    assert _sweep(launcher) == []


@pytest.fixture(scope="module")
def launch_shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path_factory.mktemp("federation"))
    yield launcher
    assert _sweep(launcher) == []


def overrides(*extra: str, rounds: int = 3) -> Sequence[str]:
    return (f"rounds={rounds}", "local_epochs=1", *extra)


def agent_of(federation: Federation, site: str) -> psutil.Process:
    return next(p for p in federation.find("site_agents.cli.main") if home_of(p).name == site)


def home_of(agent: psutil.Process) -> Path:
    words = agent.cmdline()
    return Path(words[words.index("--home") + 1])


def site_agent(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "site_agents.cli.main", *words, "--home", str(home)],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
