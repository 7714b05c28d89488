"""Every AI Factory in one federation, on this machine: nineteen agents and workers of the real kind.

Simulated: each site's device is this machine's CPU and its data an uneven share of the bundled
digits. Nothing of the machines in the catalogue is tried but their names.
"""

from __future__ import annotations

import time
from importlib.resources import files

import pytest
import yaml

from tests.federation.conftest import Launcher

LIMIT_S = 300


@pytest.mark.federation
@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)  # the rest is for ending what did not end by itself
def test_all_ai_factories_finish_a_round_in_five_minutes(launch: Launcher) -> None:
    listed = (files("fedfactory.conf") / "federation" / "all_ai_factories.yaml").read_text()
    sites = set(yaml.safe_load(listed)["sites"])
    assert len(sites) == 19
    begun = time.monotonic()
    federation = launch("federation=all_ai_factories", "rounds=1")
    assert federation.wait(LIMIT_S) == 0, federation.output()
    assert "simulated here" in federation.output()
    print(f"{len(sites)} sites, 1 round: {time.monotonic() - begun:.0f} s")
    summary = federation.summary()
    assert summary["status"] == "completed"
    (only,) = summary["rounds"]
    assert set(only["sites"]) == sites
    assert len({site["examples"] for site in only["sites"].values()}) > 9  # sizes differ
    assert all(site["examples"] > 0 for site in only["sites"].values())
    assert 0 < only["metrics"]["accuracy"] <= 1
