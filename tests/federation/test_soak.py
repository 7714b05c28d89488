"""A long private run: no process grows, no file stays open, no round gets slower."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.federation.conftest import Federation, Launcher, home_of

pytestmark = [pytest.mark.federation, pytest.mark.slow]

ROUNDS, EARLY, LATE = 150, 20, 148
PARTS = {
    "agent": "site_agents.cli.main",
    "worker": "site_agents.worker",
    "coordinator": "fedfactory.cli.main coordinator",
    "run": "fedfactory.coordinator.running.process",
}
MOST_GROWTH_BYTES = 10e6
MOST_SPOOL_BYTES = 5e6
MOST_LOG_BYTES = 1e6
MOST_BYTES_A_ROUND = 40e3  # of a site's books


@dataclass
class Look:
    """What the processes of a federation hold at one moment; the most of its kind."""

    rss_bytes: dict[str, int]
    files: dict[str, int]
    threads: dict[str, int]
    folders_bytes: dict[str, int]

    @classmethod
    def at(cls, federation: Federation) -> Look:
        look = cls({}, {}, {}, {})
        for process in federation.tree():
            name = _name(process.cmdline())
            for held, now in (
                (look.rss_bytes, process.memory_info().rss),
                (look.files, process.num_fds()),
                (look.threads, process.num_threads()),
            ):
                held[name] = max(now, held.get(name, 0))
        home = home_of(federation.find(PARTS["agent"], "/lumi ")[0])
        look.folders_bytes = {
            entry.name: sum(f.stat().st_size for f in _files(entry)) for entry in home.iterdir()
        }
        return look


def _name(words: list[str]) -> str:
    line = " ".join(words)
    return next((name for name, word in PARTS.items() if word in line), line)


def _files(entry: Path) -> list[Path]:
    found = entry.rglob("*") if entry.is_dir() else [entry]
    return [path for path in found if path.is_file()]


@pytest.mark.timeout(1200)
def test_a_hundred_and_fifty_rounds(launch: Launcher) -> None:
    federation = launch(
        f"rounds={ROUNDS}", "local_epochs=1", "task=tabular", "privacy=dp_sgd",
        "privacy.evaluation_noise_multiplier=20",
    )  # fmt: skip
    federation.wait_for_round(EARLY, seconds=300)
    began, early = time.monotonic(), Look.at(federation)
    federation.wait_for_round(2 * EARLY, seconds=300)
    early_s = time.monotonic() - began
    federation.wait_for_round(LATE - EARLY, seconds=900)
    began = time.monotonic()
    federation.wait_for_round(LATE, seconds=300)
    late_s, late = time.monotonic() - began, Look.at(federation)
    assert federation.wait() == 0, federation.output()
    print(f"{early}\n{late}\n{EARLY} rounds: {early_s:.1f} s early, {late_s:.1f} s late")

    for name, rss_bytes in late.rss_bytes.items():
        assert rss_bytes - early.rss_bytes[name] < MOST_GROWTH_BYTES, name
        assert late.files[name] <= early.files[name] + 3, name
        assert late.threads[name] <= early.threads[name] + 3, name
    held = late.folders_bytes
    assert held["spool"] < MOST_SPOOL_BYTES
    assert held["logs"] < MOST_LOG_BYTES
    books = sum(held[name] for name in held if name.startswith(("ledger", "audit")))
    assert books < MOST_BYTES_A_ROUND * LATE
    assert late_s < 1.5 * early_s
    assert federation.summary()["status"] == "completed"
