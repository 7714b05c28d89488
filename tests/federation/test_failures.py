"""Sites that die, hang or come back; children that are killed. Nothing waits for ever."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import psutil
import pytest

from tests.federation.conftest import Launcher, overrides
from tests.owned_processes import lives
from tests.patience import stretched, until

pytestmark = pytest.mark.federation


def deadline() -> str:
    """Return a short deadline of a round, which the sites that live can keep under this load."""
    return f"rounds.deadline_s={stretched(5):.1f}"


def test_a_killed_worker_is_restarted_and_the_run_completes(launch: Launcher) -> None:
    federation = launch("rounds=6", "local_epochs=10", "evaluate=false")
    federation.wait_for_round(1)
    federation.find("site_agents.worker")[0].kill()
    assert federation.wait() == 0, federation.output()
    assert federation.summary()["status"] == "completed"


def test_a_killed_agent_is_named_and_the_run_goes_on_with_quorum(launch: Launcher) -> None:
    federation = launch(
        "rounds=3", "local_epochs=10", "rounds.quorum=2", deadline(), "evaluate=false"
    )
    federation.wait_for_round(1)
    (agent,) = federation.find("site_agents.cli.main", "/lumi ")
    agent.kill()
    assert federation.wait() == 0, federation.output()
    summary = federation.summary()
    last = summary["rounds"][-1]["sites"]["lumi"]
    assert last["status"] != "took_part"
    assert last["reason"]
    assert summary["rounds"][-1]["sites"]["cesga"]["status"] == "took_part"


def test_without_quorum_the_run_fails_and_keeps_the_last_model(launch: Launcher) -> None:
    federation = launch(
        "rounds=50", "local_epochs=5", "rounds.quorum=3", deadline(), "evaluate=false"
    )
    federation.wait_for_round(1)
    (agent,) = federation.find("site_agents.cli.main", "/lumi ")
    agent.send_signal(signal.SIGSTOP)
    try:
        assert federation.wait() == 3, federation.output()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent.send_signal(signal.SIGCONT)
    summary = federation.summary()
    assert summary["status"] == "failed"
    assert "lumi" in summary["reason"]
    assert summary["model"]["file"] == "model.safetensors"


def test_a_killed_process_of_a_run_is_replaced(launch: Launcher) -> None:
    federation = launch("rounds=12", "local_epochs=1", "evaluate=false")
    federation.wait_for_round(3)
    federation.find("fedfactory.coordinator.running.process")[0].kill()
    assert federation.wait() == 0, federation.output()
    summary = federation.summary()
    assert [entry["round"] for entry in summary["rounds"]] == list(range(1, 13))
    events = federation.events()
    taken = [e["update"]["work"] for e in events if e["event"] == "ReplyAccepted"]
    assert len({(work["round"], work["site"]) for work in taken}) == len(taken) == 36


def test_a_killed_launcher_leaves_no_process(launch: Launcher) -> None:
    federation = launch("rounds=400", "evaluate=false")
    federation.wait_for_round(1)
    children = federation.tree()
    federation.process.kill()
    federation.process.wait()
    until(lambda: not any(map(lives, children)), 20)


def test_a_strategy_that_ends_its_process_again_and_again_ends_the_run_and_says_so(
    launch: Launcher, tmp_path: Path
) -> None:
    (tmp_path / "ends.py").write_text(
        "import os\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Ends(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        os._exit(0)\n"
    )
    options = ("strategy=custom", "strategy._target_=ends.Ends")
    federation = launch(*overrides(*options), env={"PYTHONPATH": str(tmp_path)})
    assert federation.wait() == 3, federation.output()
    assert "ended 5 times without getting on" in federation.summary()["reason"]
    assert (federation.out / "logs" / "run" / "serverapp.log").exists()
