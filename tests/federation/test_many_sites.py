"""Many sites, and a machine that has much else to do: the rounds complete all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.probe import end_light_agents, start_light_agents, wait_for_light_agents
from fedfactory.contracts.refusals import REFUSALS
from fedfactory.coordinator.running.journal import JOURNAL, read_events
from site_agents.catalogue import numbered_sites
from tests.federation.consortium import Consortium

SITES = 200
ROUNDS = 3
LOOPS = 10  # busy, beside the coordinator and the process of the light agents
DIGITS = ("task=digits", "evaluate=false", "federation=numbered")

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(900)]


@contextmanager
def _light_sites(folder: Path, count: int) -> Iterator[Consortium]:
    """A consortium of so many light agents, all connected; nothing of it may stay."""
    consortium = Consortium(folder)
    try:
        consortium.found(f"max_sites={count}")
        agents = start_light_agents(consortium, count)
        try:
            wait_for_light_agents(consortium, agents, count)
            yield consortium
        finally:
            end_light_agents(agents)
    finally:
        orphans = consortium.close()
    assert orphans == []


@contextmanager
def _busy_machine() -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(LOOPS)]
    try:
        yield
        assert [loop.poll() for loop in loops] == [None] * LOOPS
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_every_one_of_200_sites_is_counted_or_named(tmp_path: Path) -> None:
    with _light_sites(tmp_path, SITES) as consortium:
        with _busy_machine():
            run_id = consortium.run(
                *DIGITS, f"rounds={ROUNDS}", f"federation.count={SITES}", "rounds.quorum=0.9"
            )
            consortium.wait_for(600, lambda: consortium.ended(run_id), "the end")
        summary = consortium.summary(run_id)
    assert summary["status"] == "completed", summary["reason"]
    assert len(summary["rounds"]) == ROUNDS
    for entry in summary["rounds"]:
        assert sorted(entry["sites"]) == sorted(numbered_sites(SITES))
        missing = [part for part in entry["sites"].values() if part["status"] != "took_part"]
        assert all(part["code"] in REFUSALS and part["reason"] for part in missing), missing
        assert len(missing) <= SITES // 10


def test_sites_go_on_when_a_coordinator_or_the_process_of_their_run_dies(tmp_path: Path) -> None:
    """One that stayed silent with its doorbell open would be waited for until the deadline."""
    count, rounds = 30, 6
    victims = ("coordinator.running.process", "fedfactory.cli.main coordinator")
    with _light_sites(tmp_path, count) as consortium, consortium.kept():
        run_id = consortium.run(
            *DIGITS, f"rounds={rounds}", f"federation.count={count}", "rounds.deadline_s=600"
        )
        journal = consortium.home / "runs" / run_id / JOURNAL

        def asked(number: int) -> bool:
            events = (json.loads(line) for _, line in read_events(journal))
            return any((e["event"], e.get("round")) == ("OrdersSent", number) for e in events)

        for number, victim in enumerate((*victims, *victims), start=1):
            consortium.wait_for(60, lambda number=number: asked(number), f"round {number}")
            for process in consortium.find(victim):
                process.kill()
        consortium.wait_for(120, lambda: consortium.ended(run_id), "the end")
        summary = consortium.summary(run_id)
    assert summary["status"] == "completed", summary["reason"]
    parts = [part["status"] for entry in summary["rounds"] for part in entry["sites"].values()]
    assert parts == ["took_part"] * rounds * count
