"""From agent.yaml and overrides to an AgentConfig, and back from `make_home`'s text."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedfactory.contracts.errors import UsageError
from site_agents import agent_schema
from site_agents.agent_schema import AgentSchema
from site_agents.cli.main import main
from site_agents.config import AGENT_FILE, AgentConfig, load_agent_config
from site_agents.setup import agent_text

PLAIN = "site: lumi\ngateway: hub.example.org:443\n"


def config_of(home: Path, text: str, *overrides: str) -> AgentConfig:
    (home / AGENT_FILE).write_text(text)
    return load_agent_config(home, overrides)


def test_a_file_with_two_keys_is_enough(tmp_path: Path):
    config = config_of(tmp_path, PLAIN)
    assert (config.site, config.home, config.ledger) == ("lumi", tmp_path, tmp_path)
    assert config.gateway_address == "hub.example.org:443"
    assert (config.data, config.second_place) == ({}, None)
    assert config.worker.devices == ("auto",)
    assert config.worker.threads == 1


def test_an_override_beats_the_file_and_the_file_the_default(tmp_path: Path):
    text = f"{PLAIN}worker:\n  threads: 4\n  devices: [cuda:0, cuda:1]\n"
    config = config_of(tmp_path, text, "worker.threads=2", "gateway='[::1]:80'")
    assert (config.worker.threads, config.worker.devices) == (2, ("cuda:0", "cuda:1"))
    assert config.gateway_address == "[::1]:80"


def test_what_setup_writes_is_what_is_read(tmp_path: Path):
    data = {
        "mine": {"kind": "csv", "path": "/data/ü.csv", "columns": {"a": "x"}},
        "b": {"kind": "npz"},
    }
    text = agent_text(
        site="cesga",
        gateway_address="localhost:1",
        data=data,
        worker={"threads": 3},
        ledger=Path("/var/lib/ledger"),
        second_place=Path("syslog"),
    )
    config = config_of(tmp_path, text)
    assert (config.data, config.worker.threads) == (data, 3)
    assert (config.ledger, config.second_place) == (Path("/var/lib/ledger"), Path("syslog"))


def test_a_file_that_others_write_is_not_read(tmp_path: Path):
    config_of(tmp_path, PLAIN)
    (tmp_path / "agent.yaml").chmod(0o660)
    with pytest.raises(UsageError, match=r"its group: chmod go-w .*agent\.yaml"):
        load_agent_config(tmp_path, [])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("site: nowhere\ngateway: h:1\n", "unknown site 'nowhere'"),
        ("site: lumi\n", "gateway: no value"),
        ("site: lumi\ngateway: h\n", "gateway=h: expected host:port"),
        ("site: lumi\ngateway: h:0\n", "expected host:port"),
        (f"{PLAIN}gatway: h:1\n", "did you mean 'gateway'"),
        (f"{PLAIN}worker: {{thread: 2}}\n", "did you mean 'worker.threads'?"),
        (f"{PLAIN}worker: {{threads: 0}}\n", "worker.threads=0"),
        (f"{PLAIN}worker: {{threads: many}}\n", "worker.threads: expected a whole number"),
        (f"{PLAIN}worker: 3\n", "worker: expected keys of its own"),
        (f"{PLAIN}worker: {{devices: cpu}}\n", "worker.devices: expected a list"),
        (f"{PLAIN}data: 3\n", "data: expected names"),
        (f"{PLAIN}worker: {{timeout_s: .inf}}\n", "worker.timeout_s"),
        (f"{PLAIN}worker: {{devices: [gpu]}}\n", "worker.devices=gpu"),
        (f"{PLAIN}worker: {{devices: []}}\n", "worker.devices"),
        (f"{PLAIN}worker: {{devices: [cpu, cpu]}}\n", "names each device once"),
        (f"{PLAIN}worker: {{devices: [auto, cpu]}}\n", "auto"),
        (f"{PLAIN}data: {{Mine: {{kind: csv}}}}\n", "data=Mine"),
        (f"{PLAIN}data: {{mine: /data/x.csv}}\n", "data.mine"),
        (f"{PLAIN}data: {{mine: {{path: x}}}}\n", "kind"),
        (f"{PLAIN}ledger: here\n", "absolute path"),
        (f"{PLAIN}second_place: here\n", "absolute path"),
        (f"{PLAIN}without_second_place: ' '\n", "without_second_place"),
        (f"{PLAIN}second_place: syslog\nwithout_second_place: why\n", "where second_place is null"),
        ("site: [\n", "line 2 is no YAML"),
        ("- site\n", "expected keys and values"),
    ],
)
def test_what_does_not_hold_is_named(tmp_path: Path, text: str, said: str):
    with pytest.raises(UsageError) as raised:
        config_of(tmp_path, text)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("word", ["threads", "=3", "worker.thread=3", "worker.threads=[", "nope=1"])
def test_an_override_that_does_not_hold_is_named(tmp_path: Path, word: str):
    with pytest.raises(UsageError) as raised:
        config_of(tmp_path, PLAIN, word)
    assert word in str(raised.value) or word.partition("=")[0] in str(raised.value)


def test_a_home_without_a_file_is_told_of_init(tmp_path: Path):
    with pytest.raises(UsageError, match="site-agent init"):
        load_agent_config(tmp_path, [])


def test_schemas_repeat_no_default():
    schemas = [value for value in vars(agent_schema).values() if dataclasses.is_dataclass(value)]
    assert AgentSchema in schemas
    for schema in schemas:
        for field in dataclasses.fields(schema):
            assert field.default == "???", f"{schema.__name__}.{field.name}"


def test_help_shows_every_key(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    for schema in (agent_schema.AgentSchema, agent_schema.WorkerSchema):
        for field in dataclasses.fields(schema):
            assert f"{field.name}:" in shown
