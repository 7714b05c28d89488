"""`site-agent ledger`: what it shows, and what it changes, with the audit chain beside it."""

from __future__ import annotations

import json
import os

import pytest
from ledger_parts import COST, admitted, charge, update, work

from fedfactory.lease import Lease
from fedfactory.privacy.entries import Charge, RunKey
from site_agents.audit import AuditChain
from site_agents.cli.ledger import BAR, bar, find_run, spark
from site_agents.cli.main import main
from site_agents.config import load_agent_config
from site_agents.ledger import Ledger
from site_agents.policy import DataRule, policy_text
from site_agents.setup import make_home
from tests.policy_orders import pin

KEY = "sha256:" + "1" * 64


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    make_home(
        home,
        site="cyfronet-athena",
        gateway_address="lead.example:9443",
        data={"visits": {"kind": "csv", "path": "/data/visits.csv"}},
        policy_text=policy_text(
            coordinators={"lead": KEY},
            operators={"ada": pin(KEY)},
            data={"visits": DataRule(lineage="patients", public_size=1000, unit="row")},
            tasks={"tabular": "visits"},
        ),
    )
    return home


def use(home, rounds=3):
    ledger = Ledger.open(load_agent_config(home, []).ledger)
    ledger.admit(admitted(steps=100, cost=COST.__class__(noise_multiplier=9.0, sample_rate=0.1)))
    cost = ledger.budget.runs[RunKey(coordinator="lead", run_id="run-1")].planned[0].cost
    for number in range(1, rounds + 1):
        ledger.reserve(work(number), "patients", Charge(cost=cost, steps=10))
        ledger.commit(work(number), update(work(number)))
    ledger.close()


def said(home, capsys, *words, code=0):
    assert main(["ledger", "--home", str(home), *words]) == code
    found = capsys.readouterr()
    return found.out if code == 0 else found.err


def audited(home):
    chain = AuditChain.open(home / "audit")
    try:
        return chain.length, (home / "audit" / "chain.jsonl").read_text()
    finally:
        chain.close()


def test_it_shows_spent_held_and_left(home, capsys):
    fresh = said(home, capsys)
    assert "lineage patients at delta 1e-05: spent 0, held 0, left 10 of 10" in fresh
    assert "LineageOpened" in fresh
    use(home)
    told = said(home, capsys)
    assert "lead/run-1" in told
    assert "70 until" in told
    assert "round 3 train, 10 steps" in told
    assert "█" in told
    assert "WorkCommitted" in told


def test_json_says_it_all(home, capsys):
    use(home, rounds=4)
    told = json.loads(said(home, capsys, "--json", "--recent", "3"))
    (lineage,) = told["lineages"]
    assert lineage["lineage"] == "patients"
    assert 0 < lineage["spent"] < lineage["spent"] + lineage["held"] < lineage["cap"] == 10.0
    assert lineage["left"] == pytest.approx(10 - lineage["spent"] - lineage["held"])
    assert lineage["course"] == sorted(lineage["course"])
    assert lineage["course"][-1] == lineage["spent"]
    (run,) = told["runs"]
    assert run["epsilon"] == lineage["spent"]
    assert (run["steps_spent"], run["steps_held"]) == (40, 60)
    assert [entry["sequence"] for entry in told["recent"]] == [9, 10, 11]
    assert told["sequence"] == 11


def test_a_lineage_is_opened_once_with_the_policys_delta(home, capsys):
    before, _ = audited(home)
    for slip in ("machines", ""):  # a name that the policy does not have would stand for good
        assert "unknown lineage" in said(
            home, capsys, "open-lineage", slip, "--reason", "a new hall", code=2
        )
    assert audited(home)[0] == before
    policy = home / "policy.yaml"
    second = "  pumps: {lineage: machines, public_size: 40, unit: machine}\n"
    policy.write_text(policy.read_text().replace("data:\n", f"data:\n{second}"))
    told = said(home, capsys, "open-lineage", "machines", "--reason", "a new hall")
    assert "'machines' is open" in told
    ledger = Ledger.open(home)
    assert ledger.budget.deltas == {"patients": 1e-5, "machines": 1e-5}
    opened = json.loads(ledger.recent(1)[0].body)
    assert opened["reason"] == "a new hall"
    ledger.close()
    after, chain = audited(home)
    assert after == before + 1
    assert "lineage_opened" in chain
    assert "a new hall" in chain
    again = said(home, capsys, "open-lineage", "machines", "--reason", "more", code=2)
    assert "open already" in again
    assert audited(home)[0] == after


def test_a_hold_is_released_beside_a_working_agent(home, capsys):
    use(home)
    agent = Ledger.open(home)
    agent.reserve(work(7), "patients", charge(cost=agent.budget.runs[run()].planned[0].cost))
    told = said(home, capsys, "release", "run-1", "--reason", "it ended")
    assert told.startswith("69 steps that run lead/run-1 held are free")
    agent.refresh()
    assert agent.budget.held("patients", 0.0) == {}
    agent.close()
    assert "hold_released" in audited(home)[1]
    wrong = said(home, capsys, "release", "run-9", "--reason", "x", code=2)
    assert "was never admitted here; known: lead/run-1" in wrong


def run():
    return RunKey(coordinator="lead", run_id="run-1")


def test_a_copied_ledger_is_moved_by_a_person(home, capsys):
    use(home)
    path = home / "ledger.sqlite"
    path.with_name("copy").write_bytes(path.read_bytes())
    os.replace(path.with_name("copy"), path)
    refused = said(home, capsys, code=1)
    assert "site-agent ledger move" in refused
    assert main(["ledger", "move", "--home", str(home), "--reason", "the disk was replaced"]) == 0
    told = capsys.readouterr().out
    assert "must not be used again" in told
    assert "the disk was replaced" in said(home, capsys)
    assert "ledger_moved" in audited(home)[1]


def test_nobody_moves_the_ledger_of_an_agent_that_runs(home, capsys):
    with Lease(home, "agent", "run"):
        assert "stop it first" in said(home, capsys, "move", "--reason", "x", code=1)
    assert audited(home)[0] == 0


@pytest.mark.parametrize("number", ["0", "-3", "x"])
def test_a_count_that_is_none(home, capsys, number):
    assert "whole number above 0" in said(home, capsys, "--recent", number, code=2)


@pytest.mark.parametrize("what", [["open-lineage", "x"], ["release", "run-1"], ["move"]])
def test_a_change_needs_a_reason(home, capsys, what):
    assert "--reason" in said(home, capsys, *what, code=2)


def test_a_policy_that_does_not_hold_hides_no_ledger(home, capsys):
    use(home)
    (home / "policy.yaml").write_text("nonsense: [")
    assert main(["ledger", "--home", str(home)]) == 0
    found = capsys.readouterr()
    assert "no cap is known" in found.err
    assert "spent" in found.out
    assert " left " not in found.out


def test_a_missing_ledger_is_one_line(home, capsys):
    (home / "ledger.sqlite").unlink()
    told = said(home, capsys, code=1)
    assert told.count("\n") == 1
    assert "ledger.sqlite is missing" in told


def test_bars():
    assert bar(0, 0, 4) == "·" * BAR
    assert bar(4, 0, 4) == "█" * BAR
    assert bar(1, 1, 4) == "█" * (BAR // 4) + "▒" * (BAR // 4) + "·" * (BAR // 2)
    assert len(bar(9, 9, 4)) == BAR
    assert spark([0.0, 0.5, 1.0]) == "▁▅█"


def test_a_run_id_cannot_steer_the_terminal(home, capsys):
    ledger = Ledger.open(home)
    ledger.admit(admitted("\x1b[2Jgone\n"))
    ledger.close()
    told = said(home, capsys)
    assert "lead/?[2Jgone?" in told
    assert "\x1b" not in told


def test_a_run_of_two_coordinators_is_named_in_full():
    known = [RunKey(coordinator=name, run_id="run-1") for name in ("lead", "other")]
    assert find_run(known, "other/run-1") == known[1]
    with pytest.raises(Exception, match="several coordinators; known: lead/run-1, other/run-1"):
        find_run(known, "run-1")
