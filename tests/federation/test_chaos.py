"""A real consortium, and a seeded hand that kills, freezes or cuts something every few seconds.

The oracle is the same run undisturbed: whatever dies and when, the model is the same bit for bit,
every update counts once, the sites' books hold, and nothing is left running.
"""

from __future__ import annotations

import functools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedfactory.coordinator.running.journal import JOURNAL, read_events
from tests.federation.conftest import Launcher, site_agent
from tests.federation.consortium import Consortium
from tests.federation.homes import make_share

pytestmark = pytest.mark.federation


@dataclass(frozen=True, slots=True)
class Scene:
    """How large a run is disturbed."""

    sites: tuple[str, ...]
    rounds: int

    def run(self, *more: str) -> tuple[str, ...]:
        return (
            *("task=digits", "partition=iid", f"rounds={self.rounds}", "local_epochs=1"),
            *("seed=5", "evaluate=true", f"federation.sites=[{','.join(self.sites)}]", *more),
        )


SMALL = Scene(sites=("cesga", "cyfronet", "lumi"), rounds=6)
FULL = Scene(sites=("cesga", "cyfronet", "hlrs", "lumi", "mimer"), rounds=10)
STRATEGIES = {
    "fedavg": (),
    "fedadam": ("strategy=custom", "strategy._target_=flwr.serverapp.strategy.FedAdam"),
}
PATIENCE = ("rounds.deadline_s=120", "rounds.lateness_s=120")
# What may die or freeze, by words of its command line.
VICTIMS = {
    "coordinator": ("fedfactory.cli.main coordinator",),
    "superlink": ("flower-superlink",),
    "superexec": ("flower-superexec",),
    "serverapp": ("flwr-serverapp",),
    "agent": ("site_agents.cli.main", "run"),
    "worker": ("site_agents.worker",),
}
LONGEST_S = 300
Model = Callable[..., str]


@pytest.fixture(scope="module")
def undisturbed(launch_shared: Launcher) -> Model:
    """The digest of the model that a run makes when nobody disturbs it."""

    @functools.cache
    def digest(*run: str) -> str:
        federation = launch_shared(*run)
        assert federation.wait() == 0, federation.output()
        return str(federation.summary()["model"]["digest"])

    return digest


@pytest.mark.timeout(400)
def test_a_disturbed_run(tmp_path: Path, undisturbed: Model) -> None:
    _disturb(tmp_path, SMALL, undisturbed(*SMALL.run()), seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 28))
def test_a_disturbed_run_many_times(tmp_path: Path, undisturbed: Model, seed: int) -> None:
    _disturb(tmp_path, FULL, undisturbed(*FULL.run()), seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_whole_host_dies_at_chosen_writes_of_the_journal(
    tmp_path: Path, undisturbed: Model, strategy: str
) -> None:
    words = SMALL.run(*STRATEGIES[strategy])
    with _consortium(tmp_path, SMALL) as consortium:
        run_id = consortium.run(*words, *PATIENCE)
        journal = consortium.home / "runs" / run_id / JOURNAL
        for written in (1, 3, 9, 20, 35):
            consortium.wait_for(
                60, lambda written=written: len(_events(journal)) >= written, f"event {written}"
            )
            for process in consortium.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        consortium.wait_for(LONGEST_S, lambda: consortium.ended(run_id), "the end")
        _hold_to_account(consortium, SMALL, run_id, undisturbed(*words), [])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_agent_is_frozen_for_long(tmp_path: Path, undisturbed: Model) -> None:
    with _consortium(tmp_path, SMALL) as consortium:
        run_id = consortium.run(*SMALL.run(), *PATIENCE)
        journal = consortium.home / "runs" / run_id / JOURNAL
        consortium.wait_for(60, lambda: len(_events(journal)) >= 9, "a round")
        (agent,) = consortium.find("site_agents.cli.main", "/lumi")
        agent.suspend()
        time.sleep(15)
        agent.resume()
        consortium.wait_for(LONGEST_S, lambda: consortium.ended(run_id), "the end")
        _hold_to_account(consortium, SMALL, run_id, undisturbed(*SMALL.run()), [])


def _disturb(folder: Path, scene: Scene, model: str, seed: int) -> None:
    with _consortium(folder, scene) as consortium:
        run_id = consortium.run(*scene.run(), *PATIENCE)
        with _hand(consortium, seed) as deeds:
            consortium.wait_for(LONGEST_S, lambda: consortium.ended(run_id), f"the end {deeds}")
        consortium.wait_for_sites()
        _hold_to_account(consortium, scene, run_id, model, deeds)


@contextmanager
def _consortium(folder: Path, scene: Scene) -> Iterator[Consortium]:
    """A consortium whose daemons are started again when they end; nothing of it may stay."""
    consortium = Consortium(folder)
    try:
        consortium.found()
        for site in scene.sites:
            consortium.settle(site, lambda home, told: make_share(home, told, scene.run()))
        consortium.wait_for_sites()
        with consortium.kept():
            yield consortium
    finally:
        orphans = consortium.close()
    assert orphans == []
    for home in consortium.sites.values():
        assert site_agent(home, "audit", "verify").returncode == 0


def _events(journal: Path) -> list[dict[str, Any]]:
    if not journal.exists():
        return []
    return [json.loads(line) for _, line in read_events(journal, 0)]


def _hold_to_account(
    consortium: Consortium, scene: Scene, run_id: str, model: str, deeds: list[str]
) -> None:
    summary = consortium.summary(run_id)
    assert summary["status"] == "completed", (deeds, summary["reason"])
    trained = {
        (event["round"], event["site"])
        for event in _events(consortium.home / "runs" / run_id / JOURNAL)
        if event["event"] == "ReplyAccepted" and event["kind"] == "train"
    }
    numbers = range(1, scene.rounds + 1)
    assert trained == {(number, site) for number in numbers for site in scene.sites}, deeds
    assert summary["model"]["digest"] == model, deeds
    for site in scene.sites:
        parts = [entry["sites"][site] for entry in summary["rounds"]]
        assert [part["status"] for part in parts] == ["took_part"] * scene.rounds, (site, deeds)


@contextmanager
def _hand(consortium: Consortium, seed: int) -> Iterator[list[str]]:
    """Disturb something at random every 2 to 4 s until the block is left; yield what was done."""
    chance, over, deeds = random.Random(seed), threading.Event(), list[str]()
    frozen: list[psutil.Process] = []

    def disturb() -> None:
        while not over.wait(chance.uniform(2.0, 4.0)):
            deed = chance.choice(["kill", "kill", "freeze", "cut"])
            if deed == "cut":
                deeds.append("cut")
                consortium.wire.cut()
                over.wait(chance.uniform(0.5, 3.0))
                consortium.wire.mend()
                continue
            name = chance.choice(sorted(VICTIMS))
            found = sorted(consortium.find(*VICTIMS[name]), key=lambda p: p.pid)
            if not found:
                continue
            victim = chance.choice(found)
            deeds.append(f"{deed} {name}")
            with suppress(psutil.NoSuchProcess):
                if deed == "kill":
                    victim.kill()
                else:
                    frozen.append(victim)
                    victim.suspend()
                    over.wait(chance.uniform(1.0, 8.0))
                    victim.resume()

    hand = threading.Thread(target=disturb)
    hand.start()
    try:
        yield deeds
    finally:
        over.set()
        hand.join()
        consortium.wire.mend()
        for victim in frozen:
            with suppress(psutil.NoSuchProcess):
                victim.resume()
        time.sleep(0.2)
