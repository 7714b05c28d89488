"""One real federation, looked at while it runs: who runs, who listens, what its folder holds."""

from __future__ import annotations

import ipaddress
import json

import psutil
import pytest

from tests.federation.conftest import Federation, Launcher

pytestmark = pytest.mark.federation


@pytest.fixture(scope="module")
def running(launch_shared: Launcher) -> Federation:
    federation = launch_shared("rounds=400", "local_epochs=1", "evaluate=false")
    federation.wait_for_round(2)
    return federation


def _listeners(process: psutil.Process) -> list[tuple[str, int]]:
    return [
        (c.laddr.ip, c.laddr.port)
        for c in process.net_connections(kind="tcp")
        if c.status == psutil.CONN_LISTEN
    ]


def _is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = getattr(address, "ipv4_mapped", None)  # gRPC binds 127.0.0.1 through a v6 socket
    return (mapped or address).is_loopback


def test_every_part_is_a_process_of_its_own(running: Federation) -> None:
    parts = {
        "coordinator": running.find("fedfactory.cli.main coordinator"),
        "run": running.find("fedfactory.coordinator.running.process"),
        "agents": running.find("site_agents.cli.main"),
        "workers": running.find("site_agents.worker"),
    }
    counts = {name: len(found) for name, found in parts.items()}
    assert counts == {"coordinator": 1, "run": 1, "agents": 3, "workers": 3}
    pids = {p.pid for found in parts.values() for p in found}
    assert len(pids) == 8
    assert {p.pid for p in running.tree()} == pids


def test_all_listeners_are_on_loopback_and_sites_reach_only_the_gateway(
    running: Federation,
) -> None:
    listeners = {p.pid: _listeners(p) for p in running.tree()}
    (coordinator,) = running.find("fedfactory.cli.main coordinator")
    assert len(listeners[coordinator.pid]) == 1
    others = {pid: found for pid, found in listeners.items() if found}
    assert set(others) == {coordinator.pid}
    for found in others.values():
        assert all(_is_loopback(ip) for ip, _ in found), found
    gateway = listeners[coordinator.pid][0][1]
    for agent in running.find("site_agents.cli.main"):
        remote = {c.raddr.port for c in agent.net_connections(kind="tcp") if c.raddr}
        assert remote == {gateway}


def test_a_worker_has_no_network(running: Federation) -> None:
    for worker in running.find("site_agents.worker"):
        assert worker.net_connections(kind="inet") == []


def test_an_agent_stays_small(running: Federation) -> None:
    for agent in running.find("site_agents.cli.main"):
        assert agent.memory_info().rss < 200e6


def test_stopping_keeps_the_model_and_says_stopped(running: Federation) -> None:
    running.process.terminate()
    assert running.wait(30) in (4, 130)
    summary = running.summary()
    assert summary["status"] == "stopped"
    assert (running.out / summary["model"]["file"]).exists()
    done = [json.loads(line) for line in (running.out / "metrics.jsonl").read_text().splitlines()]
    assert len(done) >= 2
