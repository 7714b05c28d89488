"""From overrides to an AgentConfig, as `site-agent run` composes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedfactory.hydra_config import compose_config, plain
from site_agents import agent_schema
from site_agents.agent_schema import AgentSchema
from site_agents.cli.main import main
from site_agents.config import AgentConfig, agent_config


def config_of(*overrides: str) -> AgentConfig:
    return agent_config(plain(compose_config("agent", overrides, AgentSchema)))


def test_a_site_with_a_file_of_its_own(tmp_path: Path):
    data = tmp_path / "mine.npz"
    data.touch()
    config = config_of(
        "site.name=lumi",
        f"home='{tmp_path}/a home'",
        "gateway.address=hub.example.org:443",
        "data.source=npz",
        "data.task=digits",
        f"data.path='{data}'",
        "policy.tasks=[digits]",
    )
    assert (config.site, config.home) == ("lumi", tmp_path / "a home")
    assert config.gateway_address == "hub.example.org:443"
    assert config.data["path"] == str(data)
    assert config.policy.tasks == ("digits",)
    assert config.policy.privacy == ("none",)
    assert config.worker.threads == 1


def test_a_site_of_local_mode():
    config = config_of(
        "site.name=site-02",
        "home=relative",
        "gateway.address='[::1]:80'",
        "data.source=partition",
        "data.task=digits",
        "data.sites=[site-01,site-02]",
        "data.partition.kind=dirichlet",
        "data.partition.alpha=0.3",
        "data.seed=5",
    )
    assert config.home.is_absolute()
    assert config.data["partition"] == {"kind": "dirichlet", "alpha": 0.3, "labels_per_site": None}
    assert config.data["sites"] == ["site-01", "site-02"]
    assert config.data["seed"] == 5


def test_schemas_repeat_no_default():
    schemas = [value for value in vars(agent_schema).values() if dataclasses.is_dataclass(value)]
    assert AgentSchema in schemas
    for schema in schemas:
        for field in dataclasses.fields(schema):
            assert field.default == "???", f"{schema.__name__}.{field.name}"


def test_help_shows_every_key(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(agent_schema.PolicySchema):
        assert f"{field.name}:" in shown
    assert "gateway:" in shown
