"""A real consortium, and a seeded hand that kills, freezes or cuts something every few seconds.

Whatever dies and when: the run completes, every model is the mean of the updates that its journal
names (oracle.py), each counted once; the sites' books hold; nothing is left running or lying about.
Without noise the model is, besides, that of a run which nobody disturbed, bit for bit.
"""

from __future__ import annotations

import functools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from fedfactory.coordinator.running.journal import JOURNAL, read_events
from fedfactory.rounds.log import decode_event
from site_agents.cli.audit import main as audit
from tests.federation.conftest import Launcher
from tests.federation.consortium import Consortium
from tests.federation.homes import make_share
from tests.federation.oracle import Witness, check_books, check_models

pytestmark = pytest.mark.federation


@dataclass(frozen=True, slots=True)
class Scene:
    """How large a run is disturbed, and how often at most.

    A busy machine takes longer to get up than the hand to strike again: so the hand rests at last.
    """

    sites: tuple[str, ...]
    rounds: int
    deeds: int

    def run(self, *more: str) -> tuple[str, ...]:
        return (
            *("task=digits", "partition=iid", f"rounds={self.rounds}", "local_epochs=1"),
            *("seed=5", "evaluate=true", f"federation.sites=[{','.join(self.sites)}]", *more),
        )


BRIEF = Scene(sites=("cesga", "cyfronet", "lumi"), rounds=40, deeds=6)
SMALL = Scene(sites=("cesga", "cyfronet", "lumi"), rounds=80, deeds=20)
FULL = Scene(sites=("cesga", "cyfronet", "hlrs", "lumi", "mimer"), rounds=120, deeds=30)
STRATEGIES = {
    "fedavg": (),
    "fedadam": ("strategy=custom", "strategy._target_=flwr.serverapp.strategy.FedAdam"),
}
PATIENCE = ("rounds.deadline_s=120", "rounds.lateness_s=120")
# Noise of a fixed size, so that a site may pay again for what a dead worker had begun. One that
# lost its worker twice gives nothing in that round: a quorum of two does without it.
PRIVATE = (
    *("privacy=dp_sgd", "privacy.target_epsilon=null", "privacy.noise_multiplier=1.0"),
    *("evaluate=false", "rounds.quorum=2"),
)
# What may die or freeze, by words of its command line.
VICTIMS = {
    "coordinator": ("fedfactory.cli.main coordinator",),
    "run process": ("fedfactory.coordinator.running.process",),
    "agent": ("site_agents.cli.main", "run"),
    "worker": ("site_agents.worker",),
}
WIRES = ("all", "one", "silently")
LONGEST_S = 300
LONGEST_DEED_S = 12  # and the wait before it
DEEDS = "deeds.jsonl"  # what was disturbed, and when, in the folder of the consortium
Model = Callable[..., str]


@pytest.fixture(scope="module")
def undisturbed(launch_shared: Launcher) -> Model:
    """The digest of the model that a run makes when nobody disturbs it."""

    @functools.cache
    def digest(*run: str) -> str:
        federation = launch_shared(*run)
        assert federation.wait(300) == 0, federation.output()
        return str(federation.summary()["model"]["digest"])

    return digest


def test_a_disturbed_run(tmp_path: Path) -> None:
    # The run's process, the coordinator, an agent and a worker die, one is frozen, a wire is cut.
    _model_of_all(*_disturb(tmp_path, BRIEF, seed=805), BRIEF)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(1, 28))
def test_a_disturbed_run_many_times(tmp_path: Path, undisturbed: Model, seed: int) -> None:
    model = _model_of_all(*_disturb(tmp_path, FULL, seed=seed), FULL)
    assert model == undisturbed(*FULL.run())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_disturbed_private_run(tmp_path: Path, seed: int) -> None:
    _disturb(tmp_path, SMALL, *PRIVATE, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_whole_host_dies_at_chosen_writes_of_the_journal(
    tmp_path: Path, undisturbed: Model, strategy: str
) -> None:
    words = SMALL.run(*STRATEGIES[strategy])
    with _consortium(tmp_path, SMALL.run(), SMALL) as consortium:
        run_id = consortium.run(*words, *PATIENCE)
        for written in (1, 3, 9, 20, 35):
            consortium.wait_for(
                60,
                lambda written=written: len(_journal(consortium, run_id)) >= written,
                f"event {written}",
            )
            for process in consortium.processes():
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        consortium.wait_for(LONGEST_S, lambda: consortium.ended(run_id), "the end")
        assert _model_of_all(consortium, run_id, SMALL) == undisturbed(*words)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_an_agent_is_frozen_for_long(tmp_path: Path, undisturbed: Model) -> None:
    with _consortium(tmp_path, SMALL.run(), SMALL) as consortium:
        run_id = consortium.run(*SMALL.run(), *PATIENCE)
        consortium.wait_for(60, lambda: len(_journal(consortium, run_id)) >= 9, "a round")
        (agent,) = consortium.find("site_agents.cli.main", "/lumi")
        agent.suspend()
        time.sleep(15)
        agent.resume()
        consortium.wait_for(LONGEST_S, lambda: consortium.ended(run_id), "the end")
        assert _model_of_all(consortium, run_id, SMALL) == undisturbed(*SMALL.run())


def _disturb(folder: Path, scene: Scene, *words: str, seed: int) -> tuple[Consortium, str]:
    """Disturb a run, and hold it to account once it has ended; return its id."""
    run = scene.run(*words)
    with _consortium(folder, run, scene) as consortium:
        witness = Witness(consortium)
        with witness.watching():
            run_id = consortium.run(*run, *PATIENCE)
            with _hand(consortium, seed, scene.deeds) as deeds:
                most_s = LONGEST_S + LONGEST_DEED_S * scene.deeds
                consortium.wait_for(most_s, lambda: consortium.ended(run_id), "the end")
            consortium.wait_for_sites()
            consortium.wait_for(60, lambda: _updates(consortium) == [], "the end of the updates")
        summary = consortium.summary(run_id)
        assert summary["status"] == "completed", (deeds, summary["reason"])
        events = [decode_event(line)[1] for _, line in _journal(consortium, run_id)]
        model = check_models(events, witness.arrays())
        assert (summary["model"]["digest"], len(summary["rounds"])) == (model.digest, scene.rounds)
        assert len(deeds) >= scene.deeds // 3, "the run was over before it was disturbed"
        for site in scene.sites:
            check_books(consortium, site, events, witness.updates(site))
    return consortium, run_id


def _updates(consortium: Consortium) -> list[Path]:
    """Return what the coordinator still holds of runs that are over."""
    return [path for path in (consortium.home / "blobs").iterdir() if path.is_file()]


@contextmanager
def _consortium(folder: Path, run: Sequence[str], scene: Scene) -> Iterator[Consortium]:
    """A consortium whose daemons are started again when they end; nothing of it may stay."""
    consortium = Consortium(folder)
    try:
        consortium.found()
        for site in scene.sites:
            consortium.settle(site, lambda home, invited: make_share(home, invited, run))
        consortium.wait_for_sites()
        with consortium.kept():
            yield consortium
    finally:
        orphans = consortium.close()
    assert orphans == []
    for home in consortium.sites.values():
        assert audit(["verify", "--home", str(home)]) == 0


def _journal(consortium: Consortium, run_id: str) -> list[tuple[int, str]]:
    return read_events(consortium.home / "runs" / run_id / JOURNAL)


def _model_of_all(consortium: Consortium, run_id: str, scene: Scene) -> str:
    """Check that every site took part in every round; return the model's digest."""
    summary = consortium.summary(run_id)
    assert summary["status"] == "completed", summary["reason"]
    for site in scene.sites:
        parts = [entry["sites"][site] for entry in summary["rounds"]]
        assert [part["status"] for part in parts] == ["took_part"] * scene.rounds, site
    return str(summary["model"]["digest"])


@contextmanager
def _hand(consortium: Consortium, seed: int, most: int) -> Iterator[list[str]]:
    """Disturb something at random every 2 to 4 s until the block is left; yield what was done."""
    chance, over, deeds = random.Random(seed), threading.Event(), list[str]()

    def note(deed: str) -> None:
        deeds.append(deed)
        with (consortium.folder / DEEDS).open("a") as file:
            file.write(json.dumps({"at": time.time(), "deed": deed}) + "\n")

    def disturb() -> None:
        while len(deeds) < most and not over.wait(chance.uniform(2.0, 4.0)):
            deed = chance.choice(["kill", "kill", "freeze", "cut"])
            name = chance.choice(sorted(WIRES if deed == "cut" else VICTIMS))
            if deed == "cut":
                note(f"cut {name}")
                _cut(consortium, name, chance, over)
            elif found := sorted(consortium.find(*VICTIMS[name]), key=lambda p: p.pid):
                note(f"{deed} {name}")
                _strike(chance.choice(found), deed, chance.uniform(1.0, 8.0), over)

    hand = threading.Thread(target=disturb)
    hand.start()
    try:
        yield deeds
    finally:
        over.set()
        hand.join()


def _cut(consortium: Consortium, name: str, chance: random.Random, over: threading.Event) -> None:
    """Cut every site off, or one, or let what one sends and hears go astray for a while."""
    one = consortium.wires[chance.choice(sorted(consortium.wires))]
    wires = list(consortium.wires.values()) if name == "all" else [one]
    for wire in wires:
        wire.hush() if name == "silently" else wire.cut()
    over.wait(chance.uniform(0.5, 3.0))
    for wire in wires:
        wire.mend()


def _strike(victim: psutil.Process, deed: str, seconds: float, over: threading.Event) -> None:
    with suppress(psutil.NoSuchProcess):
        if deed == "kill":
            victim.kill()
        else:
            victim.suspend()
            over.wait(seconds)
            victim.resume()
