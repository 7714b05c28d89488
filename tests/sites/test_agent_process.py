"""What the process of an agent holds: nothing of Flower's or of a model's, and little at idle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from site_agents.enrolling import enrol
from site_agents.status import read_status
from tests.patience import HANG_S, until
from tests.sites.consortium import SITE, Hub, make_site

NEVER = {"flwr", "httpx", "torch", "opacus", "sklearn", "pandas", "hydra"}
IDLE_MB = 75  # of 10^6 bytes


def as_of_an_older_version(home: Path) -> None:
    """Give a home what a site had for Flower's SuperLink: a node's key, and its id."""
    request = home / "identity" / "request.json"
    request.write_text(json.dumps(json.loads(request.read_text()) | {"node_public_key": "PEM"}))
    (home / "identity" / "node.key").write_text("PEM")
    (home / "identity" / "node.key").chmod(0o600)
    (home / "node-id").write_text("17")


def test_a_real_agent_of_an_old_home_has_imported_no_flower_and_stays_small(tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    hub.start()
    home, modules = tmp_path / "site", tmp_path / "modules"
    make_site(hub, home, hub.invitation(), hub.address)
    enrol(home)
    as_of_an_older_version(home)
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).with_name("modules")),
        "MODULES": str(modules),
    }
    command = [sys.executable, "-m", "site_agents.cli.main", "run", "--home", str(home)]
    agent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    try:
        until(lambda: (s := read_status(home)) is not None and s.connection == "connected", HANG_S)
        until(lambda: hub.gateway.connected() == [SITE])
        idle_bytes = _resident(agent.pid)
    finally:
        agent.terminate()
        _, log = agent.communicate(timeout=HANG_S)
        hub.close()
    assert agent.returncode == 0, log
    imported = {name.partition(".")[0] for name in modules.read_text().splitlines()}
    assert {"site_agents", "grpc"} <= imported
    assert not NEVER & imported
    assert idle_bytes < IDLE_MB * 1e6


def _resident(pid: int) -> int:
    """Bytes of a process in memory, those that it shares with others included."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
