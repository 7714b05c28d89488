"""Five sites, ten rounds, and a seeded hand that kills, freezes or cuts something every few seconds.

The oracle is the same run undisturbed: whatever dies and when, the model is the same bit for bit,
every update counts once, the sites' books hold, and nothing is left running.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from fedfactory.coordinator.running.journal import JOURNAL, read_events
from tests.federation.conftest import Launcher, site_agent
from tests.federation.consortium import Consortium
from tests.federation.homes import make_share

pytestmark = pytest.mark.federation

SITES = ("cesga", "cyfronet", "hlrs", "lumi", "mimer")
RUN = (
    "task=digits", "partition=iid", "rounds=10", "local_epochs=1", "seed=5", "evaluate=true",
    f"federation.sites=[{','.join(SITES)}]",
)  # fmt: skip
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


@pytest.fixture(scope="module")
def undisturbed(launch_shared: Launcher) -> str:
    """The digest of the model that the run makes when nobody disturbs it."""
    federation = launch_shared(*RUN)
    assert federation.wait() == 0, federation.output()
    return str(federation.summary()["model"]["digest"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_disturbed_run(tmp_path: Path, undisturbed: str, seed: int) -> None:
    _disturb(tmp_path, undisturbed, seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3, 28))
def test_a_disturbed_run_many_times(tmp_path: Path, undisturbed: str, seed: int) -> None:
    _disturb(tmp_path, undisturbed, seed)


def _disturb(folder: Path, undisturbed: str, seed: int) -> None:
    consortium = Consortium(folder)
    try:
        consortium.found()
        for site in SITES:
            consortium.settle(site, lambda home, told: make_share(home, told, RUN))
        consortium.wait_for_sites()
        with consortium.kept():
            run_id = consortium.run(*RUN, *PATIENCE)
            with _hand(consortium, seed) as deeds:
                consortium.wait_for(LONGEST_S, lambda: consortium.ended(run_id), f"the end {deeds}")
            consortium.wait_for_sites()
        _hold_to_account(consortium, run_id, undisturbed, deeds)
    finally:
        orphans = consortium.close()
    assert orphans == []
    for home in consortium.sites.values():
        assert site_agent(home, "audit", "verify").returncode == 0


def _hold_to_account(
    consortium: Consortium, run_id: str, undisturbed: str, deeds: list[str]
) -> None:
    summary = consortium.summary(run_id)
    assert summary["status"] == "completed", (deeds, summary["reason"])
    journal = consortium.home / "runs" / run_id / JOURNAL
    events = [json.loads(line) for _, line in read_events(journal, 0)]
    taken = Counter(
        (event["round"], event["kind"], event["site"], event["order_digest"])
        for event in events
        if event["event"] == "ReplyAccepted"
    )
    trained = {key[::2] for key in taken if key[1] == "train"}
    assert trained == {(number, site) for number in range(1, 11) for site in SITES}, deeds
    assert summary["model"]["digest"] == undisturbed, deeds
    for site in SITES:
        parts = [entry["sites"][site] for entry in summary["rounds"]]
        assert [part["status"] for part in parts] == ["took_part"] * 10, (site, deeds)


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
