"""What the agent writes of itself, and what a person reads of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedfactory.contracts.orders import WorkKey
from fedfactory.lease import Holder, Lease
from site_agents.cli.main import main
from site_agents.cli.status import status_lines
from site_agents.config import AGENT_FILE
from site_agents.control import ControlState
from site_agents.status import KEEP_DONE, STATUS_FILE, StatusBoard, read_status

RUNNING = ControlState(name="running", by="", at=0.0, reason="")
HOLDER = Holder(pid=7, host="login1", since=0.0, mode="run")


def key_of(number: int) -> WorkKey:
    return WorkKey(
        coordinator="hub",
        run_id="r1",
        round=number,
        kind="train",
        site="cesga",
        order_digest=f"sha256:{number:064x}",
    )


def test_an_order_from_in_hand_to_done(tmp_path: Path):
    now = iter(range(100, 200)).__next__
    board = StatusBoard(tmp_path, clock=lambda: float(now()))
    board.connection("connected", "hub:443")
    board.begins(key_of(1))
    board.waits(key_of(1))
    status = read_status(tmp_path)
    assert status is not None
    [order] = status.in_hand
    assert (order.round, order.waits_for_approval) == (1, True)
    board.begins(key_of(1))  # taken up again: since then as before
    status = read_status(tmp_path)
    assert status is not None
    assert [(one.since, one.waits_for_approval) for one in status.in_hand] == [(order.since, False)]
    board.ends(key_of(1), "update")
    status = read_status(tmp_path)
    assert status is not None
    assert status.in_hand == ()
    assert [(one.round, one.outcome) for one in status.done] == [(1, "update")]


def test_what_was_done_outlives_the_agent_and_stays_short(tmp_path: Path):
    board = StatusBoard(tmp_path)
    for number in range(KEEP_DONE + 3):
        board.ends(key_of(number), "paused")
    again = StatusBoard(tmp_path)
    again.connection("connected")
    status = read_status(tmp_path)
    assert status is not None
    assert [one.round for one in status.done] == list(range(KEEP_DONE + 2, 2, -1))


def test_a_file_that_does_not_hold_is_no_status(tmp_path: Path):
    assert read_status(tmp_path) is None
    (tmp_path / STATUS_FILE).write_text('{"connection": "elsewhere"}')
    assert read_status(tmp_path) is None
    StatusBoard(tmp_path / "gone").connection("connected")  # a full or missing disk stops nothing


def test_a_name_of_a_strangers_choosing_steers_no_terminal(tmp_path: Path):
    board = StatusBoard(tmp_path)
    board.begins(replace(key_of(1), run_id="\x1b[2J\n" + 500 * "x"))
    board.ends(replace(key_of(2), run_id="\x1b]0;mine\x07"), "not_authorised")
    lines = status_lines(HOLDER, read_status(tmp_path), RUNNING, 0, 0.0)
    assert all(line.isprintable() for line in lines)
    assert any("?[2J?xxx" in line and len(line) < 130 for line in lines)


def test_lines_for_a_person(tmp_path: Path):
    now = iter([10.0, 20.0, 30.0, 3600.0]).__next__
    board = StatusBoard(tmp_path, clock=now)
    board.connection("connected", "hub:443")
    board.begins(key_of(3))
    board.ends(key_of(2), "update")
    paused = ControlState(name="paused", by="ana", at=0.0, reason="upgrade")
    lines = status_lines(HOLDER, read_status(tmp_path), paused, 2, 7300.0)
    assert lines == [
        "agent       run, process 7 on login1, for 2 h",
        "connection  connected for 2 h  hub:443",
        "control     paused by ana, 2 h ago: upgrade; site-agent resume takes it back",
        "approvals   2 wait for a person: site-agent approvals",
        "in hand     r1 round 3 train, for 2 h",
        "done        r1 round 2 train: update, 61 min ago",
    ]
    down = status_lines(None, read_status(tmp_path), RUNNING, 0, 7300.0)
    assert down[0] == "agent       not running (site-agent run)"
    assert [line[:5] for line in down[1:]] == ["done "]
    assert status_lines(None, None, RUNNING, 0, 0.0)[-1] == "orders      none yet"


def test_json_with_the_daemon_down_and_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / AGENT_FILE).touch()
    assert main(["status", "--home", str(tmp_path), "--json"]) == 0
    down = json.loads(capsys.readouterr().out)
    assert (down["agent"], down["last_known"]) == (None, None)
    assert down["control"]["name"] == "running"
    StatusBoard(tmp_path).connection("connected", "hub:443")
    with Lease(tmp_path, "agent", "run"):
        assert main(["status", "--home", str(tmp_path), "--json"]) == 0
    up = json.loads(capsys.readouterr().out)
    assert up["agent"]["mode"] == "run"
    assert up["last_known"]["connection"] == "connected"


def test_what_is_refused_and_until_when_the_certificate_holds(tmp_path: Path):
    clock = iter([0.0, 100.0, 200.0]).__next__
    board = StatusBoard(tmp_path, clock=clock)
    board.certificate(7300.0 + 3 * 86400)
    board.connection("connected", "hub:443")
    board.connection("refused", "cut off: ask for a new invitation")
    status = read_status(tmp_path)
    assert status is not None
    assert (status.connection, status.connected_at) == ("refused", 200.0)
    lines = status_lines(HOLDER, status, RUNNING, 0, 7300.0)
    assert lines[1:4] == [
        "connection  refused for 118 min  cut off: ask for a new invitation",
        "            last connected 118 min ago",
        "certificate holds for 3 d more, and is renewed by itself",
    ]
    ended = status_lines(None, status, RUNNING, 0, 7300.0 + 5 * 86400)
    assert "site-agent enrol" in ended[1]
    # An agent that starts anew knows both from before.
    assert StatusBoard(tmp_path, clock=lambda: 300.0)._status.certificate_ends == 7300.0 + 3 * 86400
