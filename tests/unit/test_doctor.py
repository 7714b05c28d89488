"""What the doctor finds, and what it tells to do; the machine's own answers are played."""

from __future__ import annotations

import json
import os
import socket
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedfactory.lease import Lease
from site_agents import control
from site_agents.cli.main import main
from site_agents.config import AgentConfig, load_agent_config
from site_agents.doctor.clock import judge_skew
from site_agents.doctor.finding import Finding
from site_agents.doctor.gpus import amd_gpus, judge_devices
from site_agents.doctor.house import (
    examine_books,
    examine_data,
    examine_disk,
    examine_home,
    examine_policy,
    examine_versions,
)
from site_agents.doctor.way import Heard, examine_way, judge_answer, judge_lifetime, proxy_for
from site_agents.policy import DataRule, policy_text
from site_agents.setup import make_home
from tests.policy_orders import pin

KEY = "sha256:" + "a" * 64
PINNED = {"coordinators": {"hub": KEY}, "operators": {"ana": pin(KEY)}}


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    data = tmp_path / "mine.npz"
    data.write_bytes(b"not read here")
    return make_home(
        tmp_path / "home",
        site="cesga",
        gateway_address="127.0.0.1:9",
        data={"mine": {"kind": "npz", "path": str(data)}},
        policy_text=policy_text(
            data={"mine": DataRule(lineage="mine", public_size=100, unit="row")},
            tasks={"digits": "mine"},
            **PINNED,
        ),
        second_place=Path("syslog"),
    )


def levels(findings: Iterator[Finding] | list[Finding]) -> list[tuple[str, str]]:
    found = list(findings)
    for one in found:
        assert bool(one.todo) == (one.level != "ok") or one.area == "data", one
    return [(one.level, one.area) for one in found]


def rewrite(config: AgentConfig, text: str) -> None:
    (config.home / "policy.yaml").write_text(text)


def test_a_sound_house(config: AgentConfig):
    assert levels(examine_versions()) == [("ok", "versions")]
    assert ("ok", "home") in levels(examine_home(config))
    policy, found = examine_policy(config)
    assert levels(found) == [("ok", "policy")]
    assert [area for _, area in levels(examine_disk(config, policy))] == ["disk"]
    assert levels(examine_data(config)) == [("ok", "data")]


def test_the_books_are_verified_and_stay_as_they_are(config: AgentConfig):
    found = list(examine_books(config, None))
    assert [(one.level, one.text) for one in found] == [
        ("ok", "ledger of 2 entries, audit chain of 0")
    ]
    (config.home / "ledger.key").unlink()
    [lost] = examine_books(config, None)
    assert lost.level == "fail"
    assert "make no new ledger" in lost.todo


def test_a_task_whose_orders_would_all_be_refused(config: AgentConfig):
    rewrite(config, (config.home / "policy.yaml").read_text().replace("  digits:", "  tabular:"))
    _, [found, _] = examine_policy(config)
    assert (found.level, found.area) == ("fail", "policy")
    assert found.text.startswith("tasks.tabular.parameters leaves")


def test_a_lineage_without_a_budget(config: AgentConfig):
    rewrite(
        config, (config.home / "policy.yaml").read_text().replace("lineage: mine", "lineage: o")
    )
    policy, _ = examine_policy(config)
    [_, found] = examine_books(config, policy)
    assert (found.level, found.text) == (
        "fail",
        "lineage 'o' of data 'mine' has no budget in the ledger",
    )
    assert "open-lineage" in (found.todo or "")


def test_rights_holder_and_the_administrators_word(config: AgentConfig):
    (config.home / "identity").mkdir(mode=0o755)
    control.set(config.home, "paused", by="ana", reason="upgrade")
    with Lease(config.home, "agent", "run"):
        found = {one.text: one for one in examine_home(config)}
    assert found["others may look into identity"].todo == f"chmod -R go= {config.home}"
    assert found["paused by ana: upgrade"].level == "warn"
    assert any(f"process {os.getpid()}" in text for text in found)


@pytest.mark.parametrize(
    ("agent", "optional", "level"),
    [("", False, "fail"), ("", True, "warn"), ("without_second_place: one disk\n", False, "warn")],
    ids=["required and missing", "without privacy", "acknowledged"],
)
def test_a_missing_second_place_is_a_fault_where_privacy_is_required(
    config: AgentConfig, agent: str, optional: bool, level: str
):
    path = config.home / "agent.yaml"
    path.write_text(path.read_text().replace("second_place: syslog\n", agent))
    policy = config.home / "policy.yaml"
    if optional:
        risk = (
            "dp: optional\n  acknowledged_risk: {by: ana, on: 2026-11-21, reason: public}\n"
            "  min_examples: 1\n  min_local_steps: 1"
        )
        policy.write_text(policy.read_text().replace("dp: required", risk))
    config = load_agent_config(config.home, [])
    read, _ = examine_policy(config)
    assert read is not None
    [_, found] = examine_books(config, read)
    assert found.level == level
    assert "no second place" in found.text
    assert ("acknowledged: one disk" in found.text) == bool(agent)
    # A policy that does not hold may be one that requires it.
    assert [one.level for one in examine_books(config, None)][1] in ("warn", "fail")


def _loose_key(home: Path) -> None:
    (home / "ledger.key").chmod(0o640)


def _loose_audit(home: Path) -> None:
    (home / "audit").chmod(0o770)


def _loose_word(home: Path) -> None:
    control.set(home, "running", by="ana", reason="")
    (home / "control" / "state.json").chmod(0o606)


def _loose_home(home: Path) -> None:
    home.chmod(0o777)


@pytest.mark.parametrize("loosen", [_loose_key, _loose_audit, _loose_word, _loose_home])
def test_a_home_that_others_can_change_is_a_fault_and_starts_no_agent(
    config: AgentConfig, loosen: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
):
    assert ("fail", "home") not in levels(examine_home(config))
    loosen(config.home)
    assert ("fail", "home") in levels(examine_home(config))
    assert main(["run", "--home", str(config.home)]) == 2
    assert "chmod go" in capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o660, 0o602])
def test_a_policy_that_others_write(config: AgentConfig, mode: int, capsys):
    path = config.home / "policy.yaml"
    path.chmod(mode)
    policy, [found] = examine_policy(config)
    assert (policy, found.level) == (None, "fail")
    assert f"chmod go-w {path}" in found.text
    assert main(["policy", "check", "--home", str(config.home)]) == 2
    assert f"chmod go-w {path}" in capsys.readouterr().err


def test_a_policy_that_does_not_hold(config: AgentConfig):
    rewrite(config, "coordinators: {}\nnonsense: 1\n")
    policy, found = examine_policy(config)
    assert policy is None
    assert levels(found) == [("fail", "policy")]
    assert levels(examine_data(config)) == []


def test_names_that_only_one_file_knows(config: AgentConfig):
    text = policy_text(
        data={"other": DataRule(lineage="mine", public_size=100, unit="row")},
        tasks={"digits": "other"},
        coordinators={},
        operators={},
    )
    rewrite(config, text)
    _, found = examine_policy(config)
    assert [one.level for one in found] == ["fail", "warn", "warn", "warn", "ok"]
    assert "'other'" in found[0].text
    assert "'mine'" in found[1].text


def test_data_that_are_gone(config: AgentConfig):
    Path(config.data["mine"]["path"]).unlink()
    [found] = examine_data(config)
    assert (found.level, found.todo) == ("fail", "site-agent data check mine tells more")


def test_devices():
    def judged(asked: list[str], shown: list[str], seen: list[str]) -> list[tuple[str, str]]:
        cards = [Finding("ok", "gpu", name) for name in shown]
        return [(one.level, one.text) for one in judge_devices(asked, cards, seen, 2, 8)]

    gpus = ["NVIDIA H200", "NVIDIA H200"]
    assert [level for level, _ in judged(["auto"], gpus, gpus)] == ["ok"]
    [(level, text)] = judged(["auto"], [], [])
    assert (level, text) == ("warn", "no GPU here: work runs on the CPU, 2 of 8 cores")
    [(level, text)] = judged(["auto"], gpus, [])
    assert level == "fail"
    assert "torch sees none" in text
    [(level, text)] = judged(["cuda:0", "cuda:2"], gpus, gpus)
    assert level == "fail"
    assert "cuda:2" in text
    assert "cuda:0" not in text
    assert judged(["cpu"], gpus, gpus)[0][0] == "ok"


def test_amds_library_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    """Played: it comes with ROCm alone."""
    assert amd_gpus() == []
    library = types.ModuleType("amdsmi")
    library.__dict__.update(
        AmdSmiException=type("AmdSmiException", (Exception,), {}),
        AmdSmiMemoryType=types.SimpleNamespace(VRAM="vram"),
        amdsmi_init=lambda: None,
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: [1],
        amdsmi_get_gpu_asic_info=lambda _: {"market_name": "AMD Instinct MI250X"},
        amdsmi_get_gpu_memory_total=lambda _, kind: 64 * 2**30 if kind == "vram" else 0,
        amdsmi_get_gpu_driver_info=lambda _: {"driver_version": "6.3.6"},
    )
    monkeypatch.setitem(sys.modules, "amdsmi", library)
    assert [one.text for one in amd_gpus()] == ["AMD Instinct MI250X, 64 GiB, driver 6.3.6"]

    def broken(_: int) -> None:
        raise library.AmdSmiException("AMDSMI_STATUS_BUSY")

    monkeypatch.setattr(library, "amdsmi_get_gpu_asic_info", broken)
    [found] = amd_gpus()
    assert (found.level, found.text) == ("fail", "AMD's driver does not answer: AMDSMI_STATUS_BUSY")


def test_clocks():
    assert judge_skew(0.4, 0.1).level == "ok"
    assert judge_skew(-5.0, 0.1).level == "warn"
    assert "behind" in judge_skew(-5.0, 0.1).text
    assert judge_skew(90.0, 0.1).level == "fail"
    assert judge_skew(90.0, 80.0).level == "warn"  # a slow answer leaves doubt


def heard(code: str, details: str = "", clock: float | None = 100.0) -> Heard:
    return Heard(code, details, clock, 99.9, 0.2)


@pytest.mark.parametrize(
    ("answer", "level", "said"),
    [
        (heard("NOT_FOUND"), "ok", "know each other"),
        (heard("PERMISSION_DENIED", "it was cut off"), "fail", "it was cut off"),
        (heard("FAILED_PRECONDITION", "version 9 is too new"), "fail", "version 9"),
        (heard("UNAVAILABLE", "CERTIFICATE_VERIFY_FAILED"), "fail", "not of this site's authority"),
        (heard("UNAVAILABLE", "refused"), "fail", "does not answer"),
    ],
)
def test_what_the_gateways_answer_means(answer: Heard, level: str, said: str):
    first, clock = judge_answer("hub:443", answer)
    assert first.level == level
    assert said in first.text
    assert (clock.level, clock.area) == ("ok", "clock")


def test_a_gateway_that_does_not_tell_its_time():
    assert len(list(judge_answer("hub:443", heard("NOT_FOUND", clock=None)))) == 1


@pytest.mark.parametrize(
    ("due_days", "left_days", "level"),
    [(10.0, 20.0, "ok"), (0.0, 10.0, "ok"), (-1.0, 9.0, "ok"), (-4.0, 6.0, "warn")],
)
def test_a_certificate_that_should_have_been_renewed(due_days: float, left_days: float, level: str):
    found = judge_lifetime(86400 * due_days, 86400 * left_days)
    assert (found.level, found.area) == (level, "identity")
    assert f"{left_days:.1f} days" in found.text


def test_proxies():
    def used(address: str = "hub.example.org:443", **environment: str) -> str | None:
        return proxy_for(address, environment)

    assert used() is None
    assert used(https_proxy="http://p:1") == "https_proxy"
    assert used(https_proxy="http://p:1", grpc_proxy="http://q:1") == "grpc_proxy"
    assert used(https_proxy="http://p:1", no_proxy="a.org, example.org") is None
    assert used(https_proxy="http://p:1", no_proxy="example.com") == "https_proxy"
    assert used(https_proxy="http://p:1", no_proxy="*") is None
    assert used(https_proxy="http://p:1", no_grpc_proxy="x", no_proxy="*") == "https_proxy"
    assert used("localhost:1", https_proxy="http://p:1") is None


def test_the_way_without_a_listener_and_without_a_certificate(config: AgentConfig):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        reached, waiting = examine_way(address, config.home / "identity")
    assert (reached.level, waiting.level) == ("ok", "fail")
    assert "site-agent enrol" in waiting.todo
    (config.home / "identity").mkdir(exist_ok=True)
    (config.home / "identity" / "invitation.json").touch()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        _, waiting = examine_way(address, config.home / "identity")
    assert (waiting.level, "site-agent run" in waiting.todo) == ("warn", True)
    [gone] = examine_way(address, config.home / "identity")
    assert gone.level == "fail"
    [nameless] = examine_way("no.such.host.invalid:443", config.home / "identity")
    assert nameless.level == "fail"


def test_the_command_fails_where_a_line_says_so(
    config: AgentConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from site_agents.doctor import examination

    def one(level: str) -> object:
        return lambda _: iter([Finding(level, "gateway", "a text", "" if level == "ok" else "act")])  # type: ignore[arg-type]

    home = ["doctor", "--home", str(config.home)]
    for level, code in (("ok", 0), ("warn", 0), ("fail", 1)):
        monkeypatch.setattr(examination, "examine", one(level))
        assert main(home) == code
    assert capsys.readouterr().out.splitlines() == [
        "ok    gateway   a text",
        "warn  gateway   a text",
        "                do: act",
        "fail  gateway   a text",
        "                do: act",
    ]
    assert main([*home, "-q"]) == 1
    assert capsys.readouterr().out == "fail  gateway   a text\n                do: act\n"
    assert main([*home, "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert found == {"level": "fail", "area": "gateway", "text": "a text", "todo": "act"}


def test_a_configuration_that_does_not_hold_ends_it(
    config: AgentConfig, capsys: pytest.CaptureFixture[str]
):
    (config.home / "agent.yaml").write_text("site: nowhere\ngateway: h:1\n")
    assert main(["doctor", "--home", str(config.home)]) == 1
    assert "fail  config    unknown site 'nowhere'" in capsys.readouterr().out
    with pytest.raises(Exception, match="nowhere"):
        load_agent_config(config.home, [])
