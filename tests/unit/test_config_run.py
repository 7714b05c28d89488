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
    assert (config.rules.quorum, config.mode) == (3, "sync")
    assert (config.evaluate, config.central) == (True, None)
    assert (config.checkpoints, config.model, config.central) == (3, None, None)
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
        "rounds.quorum=1",
        "rounds.deadline_s=5",
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
    assert (config.rules.quorum, config.rules.deadline_s) == (1, 5.0)
    assert (config.partition.kind, config.partition.labels_per_site) == ("labels", 2)
    assert (config.out, config.task_data) == (tmp_path / "a b", data)


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("null", {}),
        ("500", {"cesga": 500, "lumi": 500}),
        ("{lumi: 7}", {"lumi": 7}),
    ],
)
def test_what_sites_may_count_is_declared_for_all_or_by_site(told, found):
    config = config_of("federation.sites=[lumi,cesga]", "rounds.quorum=1", f"max_examples={told}")
    assert config.max_examples == found


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("0", "max_examples=0: expected a whole number from 1"),
        ("1.5", "max_examples=1.5: expected a whole number"),
        ("9007199254740993", "max_examples=9007199254740993: expected"),
        ("{lumi: -1}", "max_examples.lumi=-1: expected"),
        ("{vega: 1}", "unknown site 'max_examples.vega'"),
    ],
)
def test_a_declared_count_out_of_range_is_named(told, said):
    with pytest.raises(UsageError, match=said):
        config_of("federation.sites=[lumi,cesga]", "rounds.quorum=1", f"max_examples={told}")


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
    with pytest.raises(UsageError, match="known: custom, fedavg, fedbuff, fedprox, theirs"):
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
    config = config_of("out=${oc.env:FEDFACTORY_TEST_OUT}", "local_epochs=${rounds.number}")
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


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["rounds.quorum=0.5"], {"quorum": 2}),
        (["rounds.select=random", "rounds.per_round=0.6"], {"per_round": 2, "quorum": 2}),
        (["rounds.required=[lumi,cesga,lumi]"], {"required": ("cesga", "lumi")}),
        (["rounds.mode=async"], {"buffer": 2, "quorum": 1}),
        (["rounds.mode=async", "rounds.buffer=1"], {"buffer": 1}),
        (["rounds={number:3,retries:0}"], {"retries": 0}),
    ],
)
def test_rules_of_rounds(overrides, found):
    rules = config_of(*overrides).rules
    assert {name: getattr(rules, name) for name in found} == found


def test_rounds_and_their_number_are_one_thing():
    assert config_of("rounds=3") == dataclasses.replace(
        config_of("rounds.number=3"), composed_yaml=config_of("rounds=3").composed_yaml
    )
    assert config_of("rounds={number:4}").rounds == 4


def test_metrics_know_their_direction():
    assert not config_of("evaluation.metric=loss").evaluation.higher_is_better
    assert config_of("evaluation.metric=accuracy").evaluation.higher_is_better


def test_sites_may_come_from_elsewhere():
    composed = compose_config("run", ["rounds.quorum=4"], RunSchema, CHOICE_SCHEMAS, None)
    config = run_config(plain(composed), "", sites=("a", "b", "c", "d"))
    assert (config.sites, config.rules.quorum) == (("a", "b", "c", "d"), 4)


def test_a_central_evaluation_and_a_warm_start(tmp_path: Path):
    data = tmp_path / "public.npz"
    data.touch()
    config = config_of(f"evaluation.central={data}", "evaluation.patience=2", "model=run-1:3")
    assert config.central == data
    assert (config.evaluation.patience, config.model) == (2, "run-1:3")
    assert config_of("rounds.mode=async", f"evaluation.central={data}", "evaluation.keep=best")


@pytest.mark.parametrize(
    ("task", "label", "wrong", "known"),
    [
        ("tabular", "sick:no|yes", "mae", "accuracy, loss"),
        ("tabular", "age:50:10", "accuracy", "loss, mae"),
    ],
)
def test_a_metric_that_the_task_will_not_report_is_refused(task, label, wrong, known):
    kind = "regression" if wrong == "accuracy" else "classification"
    words = [
        f"task={task}",
        f"task.kind={kind}",
        f"task.label='{label}'",
        "task.numeric='bmi:25:5'",
    ]
    assert config_of(*words).evaluation.metric == "loss"
    with pytest.raises(UsageError, match=f"'{wrong}'; known: {known}"):
        config_of(*words, f"evaluation.metric={wrong}")
