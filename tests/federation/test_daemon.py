"""A site's agent in a real federation: the administrator's word, signals, ticks, the doctor."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedfactory.identity.enrolment import install_certificate, read_request, request_identity
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.roles import Role
from fedfactory.identity.root import Root
from site_agents.status import Status, read_status
from tests.federation.conftest import (
    Federation,
    Launcher,
    agent_of,
    home_of,
    site_agent,
)
from tests.owned_processes import lives
from tests.patience import HANG_S, stretched, until

pytestmark = pytest.mark.federation


@pytest.fixture(scope="module")
def running(launch_shared: Launcher) -> Federation:
    federation = launch_shared("rounds=5000", "local_epochs=1", "evaluate=false", "rounds.quorum=1")
    federation.wait_for_round(2)
    return federation


def status_of(home: Path) -> Status:
    status = read_status(home)
    assert status is not None
    return status


def outcomes(home: Path) -> list[str]:
    return [one.outcome for one in status_of(home).done]


@pytest.mark.parametrize(("word", "code"), [("pause", "paused"), ("kill", "killed")])
def test_a_word_holds_within_a_second_until_it_is_taken_back(
    running: Federation, word: str, code: str
) -> None:
    home = home_of(agent_of(running, "cesga"))
    until(lambda: outcomes(home)[0] == "update", 10)
    assert site_agent(home, word, "--reason", "upgrade").returncode == 0
    # The next answer is a refusal by that code; no later one is an update.
    until(lambda: outcomes(home)[0] == code, 2)
    time.sleep(1.0)
    assert set(outcomes(home)[:2]) == {code}
    shown = json.loads(site_agent(home, "status", "--json").stdout)
    assert (shown["control"]["name"], shown["control"]["reason"]) == (code, "upgrade")
    assert site_agent(home, "resume").returncode == 0
    until(lambda: outcomes(home)[0] == "update", 5)


def test_one_agent_to_a_home(running: Federation) -> None:
    agent = agent_of(running, "cesga")
    home = home_of(agent)
    tick, run = site_agent(home, "tick"), site_agent(home, "run")
    assert (tick.returncode, run.returncode) == (0, 1)
    for refused in (tick, run):
        assert f"process {agent.pid} " in refused.stderr
    assert lives(agent)


def test_the_doctor_beside_a_running_agent(running: Federation) -> None:
    home = home_of(agent_of(running, "lumi"))
    before = status_of(home).connection_since
    found = site_agent(home, "doctor")
    lines = [line.split(maxsplit=2) for line in found.stdout.splitlines() if line[:1] != " "]
    levels = {(area, level) for level, area, _ in lines}
    assert {("tls", "ok"), ("identity", "ok"), ("books", "ok"), ("data", "ok")} <= levels
    assert any(area == "clock" and "of the gateway's" in text for _, area, text in lines)
    assert not any(level == "fail" for level, _, _ in lines), found.stdout
    assert found.returncode == 0
    assert status_of(home).connection_since == before  # it disturbed nothing


def test_sigterm_drains_and_a_tick_takes_over(running: Federation) -> None:
    agent = agent_of(running, "cyfronet")
    home = home_of(agent)
    until(lambda: outcomes(home)[0] == "update", 10)
    worker = next(child for child in agent.children() if "site_agents.worker" in child.cmdline())
    agent.send_signal(signal.SIGTERM)
    until(lambda: not lives(agent) and not lives(worker), 20)
    assert status_of(home).in_hand == ()
    assert status_of(home).connection == "stopped"
    assert "not running" in site_agent(home, "status").stdout

    done = status_of(home).done[0]
    assert site_agent(home, "drain", "--reason", "a test").returncode == 0
    assert site_agent(home, "tick").returncode == 0  # drained: it takes nothing
    assert status_of(home).done[0] == done
    assert site_agent(home, "resume").returncode == 0

    before = status_of(home).done[0]
    # Rounds follow one another without end here: the tick is told to drain once it works.
    tick = subprocess.Popen(
        [sys.executable, "-m", "site_agents.cli.main", "tick", "--home", str(home)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: status_of(home).done[0] != before and outcomes(home)[0] == "update", 30)
        tick.send_signal(signal.SIGTERM)
        _, log = tick.communicate(timeout=HANG_S)
        assert tick.returncode == 0, log
    finally:
        tick.kill()
        tick.wait()
    assert running.process.poll() is None


def test_a_word_and_a_second_signal_reach_work_under_way(launch: Launcher) -> None:
    federation = launch("rounds=1", "local_epochs=100000", "evaluate=false", "rounds.quorum=1")
    until(lambda: len(federation.find("site_agents.worker")) == 3, 60)
    stopped, killed = (agent_of(federation, site) for site in ("cesga", "lumi"))
    for agent in (stopped, killed):
        until(partial(has_in_hand, home_of(agent)), 60)
    time.sleep(2.0)  # until they train

    home = home_of(killed)
    assert site_agent(home, "kill", "--reason", "a test").returncode == 0
    until(lambda: outcomes(home) == ["killed"], 1.0)
    assert lives(killed)

    stopped.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert lives(stopped)  # the order under way goes on
    assert has_in_hand(home_of(stopped))
    stopped.send_signal(signal.SIGTERM)
    until(lambda: not lives(stopped), 10)


def has_in_hand(home: Path) -> bool:
    status = read_status(home)
    return status is not None and bool(status.in_hand)


def test_a_gateway_that_is_away_is_said_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with socket.socket() as taken:  # bound and not listening: every connection is refused
        taken.bind(("127.0.0.1", 0))
        gateway = f"127.0.0.1:{taken.getsockname()[1]}"
        made = site_agent(home, "init", "--site", "cesga", "--gateway", gateway)
        assert made.returncode == 0, made.stderr
        _enrol(home, Issuer.create(tmp_path / "issuer", "alliance", Root.new("alliance")))
        agent = subprocess.Popen(
            [sys.executable, "-m", "site_agents.cli.main", "run", "--home", str(home)],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(lambda: detail_of(home) == "the gateway cannot be reached", 30)
            time.sleep(2.0)  # it tries some five times
            agent.send_signal(signal.SIGTERM)
            _, log = agent.communicate(timeout=HANG_S)
        finally:
            agent.kill()
            agent.wait()
    assert agent.returncode == 0, log
    assert log.count("not connected") == 1, log


def _enrol(home: Path, issuer: Issuer) -> None:
    folder = home / "identity"
    request_identity(folder, Role.SITE, "cesga")
    request = read_request(folder)
    certificate = issuer.sign(request.csr_pem, Role.SITE, "cesga", timedelta(days=1))
    install_certificate(folder, certificate, issuer.bundle_pem)


def detail_of(home: Path) -> str:
    status = read_status(home)
    return status.detail if status else ""


def test_an_idle_agent_costs_next_to_nothing(launch: Launcher) -> None:
    """One site's worker is held; the other agents wait for the round to end."""
    federation = launch("rounds=50", "local_epochs=1", "evaluate=false")
    federation.wait_for_round(2)
    agent = agent_of(federation, "lumi")
    held = next(
        child
        for child in agent_of(federation, "cesga").children()
        if "site_agents.worker" in child.cmdline()
    )
    held.suspend()
    try:
        time.sleep(stretched(3.0))
        begun, began = _cpu_s(agent), time.monotonic()
        time.sleep(6.0)
        share = (_cpu_s(agent) - begun) / (time.monotonic() - began)
    finally:
        held.resume()
    assert share < 0.01
    assert agent.memory_info().rss < 200e6


def _cpu_s(process: psutil.Process) -> float:
    times: Any = process.cpu_times()
    return float(times.user + times.system)
