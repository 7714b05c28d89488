"""Runs `fedfactory local` as a user would, reads its run folder, samples its processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from bench.figures import Figures, note_peaks

# What a process is called here, by words of its command line.
PARTS = {
    "run process": "fedfactory.coordinator.running.process",
    "coordinator": "fedfactory.cli.main coordinator",
    "agent": "site_agents.cli.main",
    "worker": "site_agents.worker",
}
SAMPLE_S = 0.5


def run(*overrides: str) -> Figures:
    """Run one federation to its end."""
    with _local(*overrides) as (process, out, began):
        first = _wait_for_round_1(process, out) - began
        peak: dict[str, float] = {}
        while process.poll() is None:
            note_peaks(process.pid, PARTS, peak)
            time.sleep(SAMPLE_S)
        assert process.returncode == 0, f"fedfactory local ended with {process.returncode}"
        rounds = json.loads((out / "summary.json").read_text())["rounds"]
        return Figures(first_s=first, rounds_s=[r["seconds"] for r in rounds[1:]], peak_mb=peak)


def idle_agent_share(seconds: float) -> float:
    """Return the share of a core that an agent uses while it waits for another site's work."""
    with _local("rounds=100000", "evaluate=false") as (process, out, _):
        _wait_for_round_1(process, out)
        time.sleep(2)
        worker = _child(process, PARTS["worker"], "--site lumi")
        agent = _child(process, PARTS["agent"], "/cesga ")
        worker.suspend()
        try:
            time.sleep(3)
            before = sum(agent.cpu_times()[:2])
            time.sleep(seconds)
            return (sum(agent.cpu_times()[:2]) - before) / seconds
        finally:
            worker.resume()


@contextmanager
def _local(*overrides: str) -> Iterator[tuple[subprocess.Popen[bytes], Path, float]]:
    """Start a federation; stop it at the end if it still runs."""
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "fedfactory.cli.main", "local", f"out={out}", *overrides]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield process, out, began
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def _wait_for_round_1(process: subprocess.Popen[bytes], out: Path) -> float:
    """Return when the first round's line was there (time.monotonic, to 20 ms)."""
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None, f"fedfactory local ended with {process.returncode}"
        time.sleep(0.02)
    return time.monotonic()


def _child(process: subprocess.Popen[bytes], *words: str) -> psutil.Process:
    children = psutil.Process(process.pid).children(recursive=True)
    return next(c for c in children if all(w in " ".join(c.cmdline()) for w in words))
