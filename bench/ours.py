"""Runs `fedfactory local` as a user would, reads its run folder, samples its processes."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

# What a process is called here, by words of its command line.
PARTS = {
    "ServerApp": "flwr-serverapp",
    "SuperLink": "flower-superlink",
    "gateway": "fedfactory.coordinator ",
    "agent": "site_agents.cli.main",
    "worker": "site_agents.worker",
}


@dataclass
class Figures:
    """Seconds from the command to the end of round 1, seconds of each later round, peak MB."""

    first_s: float
    rounds_s: list[float]
    peak_mb: dict[str, float] = field(default_factory=dict)

    @property
    def round_s(self) -> float:
        return statistics.median(self.rounds_s)


def run(*overrides: str) -> Figures:
    """Run one federation to its end."""
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "fedfactory.cli.main", "local", f"out={out}", *overrides]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        metrics, first, peak = out / "metrics.jsonl", 0.0, dict.fromkeys(PARTS, 0.0)
        while process.poll() is None:
            if not first and metrics.exists() and metrics.stat().st_size:
                first = time.monotonic() - began
            _sample(process.pid, peak)
            time.sleep(0.02 if not first else 0.25)
        assert process.returncode == 0, f"fedfactory local ended with {process.returncode}"
        rounds = json.loads((out / "summary.json").read_text())["rounds"]
        return Figures(first, [r["seconds"] for r in rounds[1:]], peak)


def _sample(pid: int, peak: dict[str, float]) -> None:
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return
    for child in children:
        try:
            command = " ".join(child.cmdline())
            found = next((name for name, words in PARTS.items() if words in command), None)
            if found:
                # VmHWM: the kernel's own record of the highest resident size.
                status = Path(f"/proc/{child.pid}/status").read_text()
                line = next(x for x in status.splitlines() if x.startswith("VmHWM"))
                peak[found] = max(peak[found], int(line.split()[1]) / 1000)
        except (psutil.Error, OSError, StopIteration):
            continue


def idle_agent_share(seconds: float = 20.0) -> float:
    """Return the share of a core that an agent uses while it waits for another site's work."""
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        out = Path(folder) / "run"
        words = ("rounds=100000", "evaluate=false", f"out={out}")
        process = subprocess.Popen(
            [sys.executable, "-m", "fedfactory.cli.main", "local", *words],
            stdout=subprocess.DEVNULL,
        )
        try:
            while not (out / "metrics.jsonl").exists():
                time.sleep(0.1)
            time.sleep(2)
            children = psutil.Process(process.pid).children(recursive=True)
            commands = {p: " ".join(p.cmdline()) for p in children}
            worker = next(p for p, c in commands.items() if "site_agents.worker --site lumi" in c)
            agent = next(
                p for p, c in commands.items() if PARTS["agent"] in c and "site=cesga" in c
            )
            worker.suspend()
            time.sleep(3)
            before = sum(agent.cpu_times()[:2])
            time.sleep(seconds)
            used = sum(agent.cpu_times()[:2]) - before
            worker.resume()
            return used / seconds
        finally:
            process.terminate()
            process.wait(60)
