"""Two hundred sites on a machine that has much else to do: the rounds complete all the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.probe import end_light_agents, start_light_agents, wait_for_light_agents
from fedfactory.contracts.refusals import REFUSALS
from site_agents.catalogue import numbered_sites
from tests.federation.consortium import Consortium

SITES = 200
ROUNDS = 3
LOOPS = 10  # busy, beside the coordinator and the process of the stand-in agents
RUN = (
    *("task=digits", "evaluate=false", f"rounds={ROUNDS}"),
    *("federation=numbered", f"federation.count={SITES}", "rounds.quorum=0.9"),
)

pytestmark = [pytest.mark.federation, pytest.mark.slow, pytest.mark.timeout(900)]


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


def test_every_site_is_counted_or_named(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path)
    try:
        consortium.found(f"max_sites={SITES}")
        agents = start_light_agents(consortium, SITES)
        try:
            wait_for_light_agents(consortium, agents, SITES)
            with _busy_machine():
                run_id = consortium.run(*RUN)
                consortium.wait_for(600, lambda: consortium.ended(run_id), "the end")
        finally:
            end_light_agents(agents)
        summary = consortium.summary(run_id)
        assert summary["status"] == "completed", summary["reason"]
        assert len(summary["rounds"]) == ROUNDS
        for entry in summary["rounds"]:
            assert sorted(entry["sites"]) == sorted(numbered_sites(SITES))
            missing = [p for p in entry["sites"].values() if p["status"] != "took_part"]
            assert all(part["code"] in REFUSALS and part["reason"] for part in missing), missing
            assert len(missing) <= SITES // 10
    finally:
        orphans = consortium.close()
    assert orphans == []
