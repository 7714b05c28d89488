"""What a finished run leaves behind, and that the same seed leaves the same."""

from __future__ import annotations

import hashlib
import json

import pytest

from fedfactory.rounds.log import read_log
from fedfactory.rounds.machine import replay
from tests.federation.conftest import Federation, Launcher

pytestmark = pytest.mark.federation
OVERRIDES = ("rounds=3", "local_epochs=1", "seed=7")


@pytest.fixture(scope="module")
def finished(launch_shared: Launcher) -> Federation:
    # Proxies that answer nobody: loopback traffic must not see them.
    dead = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), "http://127.0.0.1:9")
    dead |= {"ALL_PROXY": "socks5://127.0.0.1:9", "SSL_CERT_FILE": "/nowhere", "HOME": "/nowhere"}
    federation = launch_shared(*OVERRIDES, "baselines=true", env=dead)
    assert federation.wait() == 0, federation.output()
    return federation


def test_summary_has_what_the_form_promises(finished: Federation) -> None:
    summary = finished.summary()
    assert summary["status"] == "completed"
    assert [r["round"] for r in summary["rounds"]] == [1, 2, 3]
    for line in summary["rounds"]:
        assert set(line["sites"]) == {"cesga", "cyfronet", "lumi"}
        assert all(site["examples"] > 0 for site in line["sites"].values())
        assert 0 < line["metrics"]["accuracy"] <= 1
        assert line["train_seconds"] <= line["seconds"]
    assert summary["final"] == summary["rounds"][-1]["metrics"]
    assert set(summary["baselines"]["local_only"]) == {"cesga", "cyfronet", "lumi"}
    assert 0 < summary["baselines"]["pooled"] <= 1
    for traffic in summary["bytes"].values():
        assert traffic["down"] > 3 * summary["model"]["bytes"]
        assert traffic["up"] > 3 * 400_000
    content = (finished.out / summary["model"]["file"]).read_bytes()
    assert summary["model"]["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()


def test_the_events_replay_to_the_same_end(finished: Federation) -> None:
    with (finished.out / "events.jsonl").open() as lines:
        state = replay(read_log(lines))
    assert state.phase == "done"
    assert state.model.digest == finished.summary()["model"]["digest"]


def test_metrics_are_written_a_line_a_round(finished: Federation) -> None:
    lines = [json.loads(x) for x in (finished.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]


def test_logs_of_every_process_are_kept(finished: Federation) -> None:
    logs = {str(p.relative_to(finished.out / "logs")) for p in finished.out.glob("logs/*/*")}
    for site in ("cesga", "cyfronet", "lumi"):
        assert {f"{site}/agent.log", f"{site}/worker.log"} <= logs


def test_flowers_log_lines_stay_out_of_the_output(finished: Federation) -> None:
    assert "INFO" not in finished.output()


def test_the_same_seed_gives_the_same_model_told_in_json(
    finished: Federation, launch: Launcher
) -> None:
    again = launch(*OVERRIDES, "--json")
    assert again.wait() == 0, again.output()
    assert again.summary()["model"]["digest"] == finished.summary()["model"]["digest"]
    taken, *events, end = map(json.loads, again.output().splitlines())
    assert taken == {
        "run_id": again.events()[0]["plan"]["signed"]["terms"]["run_id"],
        "reason": "",
        "findings": [],
    }
    assert events == again.events()
    assert end == {"summary": again.summary()}


def test_another_seed_gives_another_model_told_quietly(
    finished: Federation, launch: Launcher
) -> None:
    other = launch("rounds=1", "local_epochs=1", "seed=8", "-q")
    assert other.wait() == 0, other.output()
    assert other.output() == f"{other.summary()['run_id']}\n"
    assert other.summary()["model"]["digest"] != finished.summary()["model"]["digest"]
