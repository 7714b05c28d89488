"""kill -9 of a site's agent at random moments of a private run: the run goes on, to the same sums."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.federation.conftest import (
    Federation,
    Launcher,
    agent_of,
    home_of,
    site_agent,
)
from tests.patience import until

pytestmark = pytest.mark.federation

TARGET = 3.0
SITE = "lumi"


def test_an_agent_killed_at_random(launch: Launcher) -> None:
    _kill_at_random(launch, rounds=8, deaths=4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [2, 3])
def test_an_agent_killed_at_random_many_times(launch: Launcher, seed: int) -> None:
    _kill_at_random(launch, rounds=40, deaths=25, seed=seed)


def _kill_at_random(launch: Launcher, *, rounds: int, deaths: int, seed: int) -> None:
    chance = random.Random(seed)
    federation = launch(
        f"rounds={rounds}", "local_epochs=1", "task=tabular", "privacy=dp_sgd",
        f"privacy.target_epsilon={TARGET}", "privacy.evaluation_noise_multiplier=20",
        "rounds.quorum=2",  # what is done again costs again: its budget may end before the run
    )  # fmt: skip
    federation.wait_for_round(1)
    home = home_of(agent_of(federation, SITE))
    with _kept(federation):
        for _ in range(deaths):
            time.sleep(chance.uniform(0.0, 1.5))
            if has_ended(home):
                break
            federation.restart(agent_of(federation, SITE))
        until(lambda: has_ended(home), 120)
        federation.end_restarted()  # its workspace lasts as long as `local` is stopped
        books = _Books.of(home)
    assert federation.wait() == 0, federation.output()
    _hold_to_account(federation, books, rounds)


def has_ended(home: Path) -> bool:
    """Whether the run of the site at `home` is over: by its coordinator, while `local` is held."""
    return any((home.parent / "coordinator" / "runs").glob("*/summary.json"))


@contextmanager
def _kept(federation: Federation) -> Iterator[None]:
    """Keep the sites' homes: whoever started the run removes them when it ends."""
    federation.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        federation.process.send_signal(signal.SIGCONT)


@dataclass
class _Books:
    """A site's books, verified by its own commands."""

    ledger: dict[str, Any]
    audit: list[dict[str, Any]]

    @classmethod
    def of(cls, home: Path) -> _Books:
        verified = site_agent(home, "audit", "verify")
        assert verified.returncode == 0, verified.stderr
        shown = site_agent(home, "ledger", "--json", "--recent", "100000")
        assert shown.returncode == 0, shown.stderr
        chain = (home / "audit" / "chain.jsonl").read_text().splitlines()
        return cls(json.loads(shown.stdout), [json.loads(line)["entry"] for line in chain])

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [one["entry"] for one in self.ledger["recent"] if one["kind"] == kind]


def _work(of: dict[str, Any]) -> tuple[int, str]:
    return of["round"], of["kind"]


def _hold_to_account(federation: Federation, books: _Books, rounds: int) -> None:
    summary = federation.summary()
    assert summary["status"] == "completed"
    assert len(summary["rounds"]) == rounds
    taken = [e["update"] for e in federation.events() if e["event"] == "ReplyAccepted"]
    taken = [update for update in taken if update["work"]["site"] == SITE]
    assert len(taken) >= 3  # rounds that begin while it is away do not wait for it
    accepted = {_work(update["work"]): update for update in taken}
    assert len(accepted) == len(taken), "an answer was counted twice"

    epsilons = [update["privacy"]["epsilon_run"] for update in taken]
    assert epsilons == sorted(epsilons), "epsilon fell"
    (run,) = books.ledger["runs"]
    assert epsilons[-1] <= run["epsilon"] <= TARGET

    committed = {_work(entry["work"]): entry["update"] for entry in books.of_kind("WorkCommitted")}
    assert len(committed) == len(books.of_kind("WorkCommitted"))
    for work, update in accepted.items():
        assert update["payload"] == committed[work]["payload"], work
        assert update["privacy"] == committed[work]["privacy"], work
    reserved = Counter(_work(entry["work"]) for entry in books.of_kind("WorkReserved"))
    reserved.subtract(_work(entry["work"]) for entry in books.of_kind("WorkRefunded"))
    assert all(reserved[work] >= 1 for work in committed)

    left: dict[tuple[int, str], set[str]] = {}
    for entry in books.audit:
        if entry["event"] == "released":
            left.setdefault(_work(entry), set()).add(entry["update"])
    assert set(accepted) <= set(left), "it left, and is not in the audit chain"
    assert all(len(updates) == 1 for updates in left.values()), "one work left as two updates"
