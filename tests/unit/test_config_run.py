"""From overrides to a RunConfig: defaults from the YAML alone, every choice composes."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from fedfactory import hydra_config
from fedfactory.choices import choices, groups, values_of
from fedfactory.config import RunConfig, run_config
from fedfactory.contracts.errors import UsageError
from fedfactory.hydra_config import compose_config, plain
from fedfactory.run_schema import CHOICE_SCHEMAS, RunSchema


def config_of(*overrides: str, plugins: dict[str, list[str]] | None = None) -> RunConfig:
    composed = compose_config("run", overrides, RunSchema, CHOICE_SCHEMAS, plugins)
    return run_config(plain(composed), OmegaConf.to_yaml(composed))


def test_the_defaults_are_the_demo():
    config = config_of()
    assert (config.task_name, config.task_parameters) == ("digits", {"model": "mlp"})
    assert (config.strategy_name, config.rounds) == ("fedavg", 10)
    assert (config.partition.kind, config.partition.alpha) == ("dirichlet", 0.3)
    assert config.sites == ("cesga", "cyfronet", "lumi")
    assert config.round.quorum == 3
    assert config.evaluate
    assert not config.baselines
    assert config.out is None
    assert config.task_data is None


def test_every_choice_of_every_group_composes():
    own = {"custom": ["strategy._target_=flwr.serverapp.strategy.FedMedian"]}
    for group in groups("run"):
        for choice in choices(group):
            config = config_of(f"{group}={choice}", *own.get(choice, []))
            assert yaml.safe_load(config.composed_yaml)[group] == {
                **values_of(group, choice),
                **({"_target_": "flwr.serverapp.strategy.FedMedian"} if choice in own else {}),
            }


def test_schemas_repeat_no_default():
    for schema in (RunSchema, *CHOICE_SCHEMAS.values()):
        for field in dataclasses.fields(schema):
            assert field.default == "???", f"{schema.__name__}.{field.name}"


def test_typed_values_reach_the_config(tmp_path: Path):
    data = tmp_path / "my data,1.npz"
    data.touch()
    config = config_of(
        "rounds=3",
        "local_epochs=4",
        "batch_size=16",
        "lr=1",
        "momentum=0",
        "max_steps=7",
        "seed=9",
        "evaluate=false",
        "baselines=true",
        "partition=labels",
        "partition.labels_per_site=2",
        "federation.sites=[lumi,cesga]",
        "round.quorum=1",
        "round.deadline_s=5",
        f"out='{tmp_path}/a b'",
        f"task.data='{data}'",
    )
    training = config.training
    assert (training.local_epochs, training.batch_size, training.max_steps) == (4, 16, 7)
    assert (training.lr, training.momentum, training.proximal_mu) == (1.0, 0.0, 0.0)
    assert isinstance(training.lr, float)
    assert (config.rounds, config.seed) == (3, 9)
    assert (config.evaluate, config.baselines) == (False, True)
    assert config.sites == ("cesga", "lumi")
    assert (config.round.quorum, config.round.deadline_s) == (1, 5.0)
    assert (config.partition.kind, config.partition.labels_per_site) == ("labels", 2)
    assert (config.out, config.task_data) == (tmp_path / "a b", data)


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_strategy_by_target_takes_keys_of_its_own(sign):
    config = config_of(
        "strategy=custom",
        "strategy._target_=flwr.serverapp.strategy.FedTrimmedAvg",
        f"{sign}strategy.beta=0.25",
        f"{sign}strategy.names=[a,b]",
    )
    assert config.strategy_name == "custom"
    assert config.strategy_options == {
        "_target_": "flwr.serverapp.strategy.FedTrimmedAvg",
        "beta": 0.25,
        "names": ("a", "b"),
    }


def test_a_later_choice_wins():
    config = config_of("strategy=custom", "strategy=fedprox", "strategy.mu=0.5")
    assert config.strategy_options == {"mu": 0.5, "weighting": "examples"}


def test_strategies_of_other_packages_are_choices_with_open_keys():
    known = {"strategy": ["fedavg", "fedprox", "theirs"]}
    config = config_of("strategy=theirs", "strategy.gamma=2", plugins=known)
    assert (config.strategy_name, config.strategy_options) == ("theirs", {"gamma": 2})
    with pytest.raises(UsageError, match="known: custom, fedavg, fedprox, theirs"):
        config_of("strategy=their", plugins=known)


@pytest.mark.parametrize(
    ("count", "first", "last"), [(1, "site-01", "site-01"), (12, "site-01", "site-12")]
)
def test_numbered_federations(count, first, last):
    sites = config_of("federation=numbered", f"federation.count={count}").sites
    assert (len(sites), sites[0], sites[-1]) == (count, first, last)


def test_numbered_sites_stay_in_canonical_order():
    sites = config_of("federation=numbered", "federation.count=101").sites
    assert list(sites) == sorted(sites)
    assert all(a < b for a, b in itertools.pairwise(sites))


def test_references_are_resolved_in_the_kept_yaml(monkeypatch):
    monkeypatch.setenv("FEDFACTORY_TEST_OUT", "there")
    config = config_of("out=${oc.env:FEDFACTORY_TEST_OUT}", "local_epochs=${rounds}")
    assert config.training.local_epochs == config.rounds
    kept = yaml.safe_load(config.composed_yaml)
    assert (kept["out"], kept["local_epochs"]) == ("there", config.rounds)


def test_the_kept_yaml_composes_to_itself():
    config = config_of("task=echo", "partition=iid", "federation=numbered", "rounds=4")
    assert run_config(yaml.safe_load(config.composed_yaml), config.composed_yaml) == config


def test_composing_twice_leaves_nothing_behind():
    first = config_of("rounds=3")
    config_of("strategy=theirs", plugins={"strategy": ["theirs"]})
    assert config_of("rounds=3") == first
    with pytest.raises(UsageError, match="unknown strategy 'theirs'"):
        config_of("strategy=theirs")


def test_the_config_module_is_the_shipped_one():
    assert hydra_config.CONFIG_MODULE == "fedfactory.conf"
