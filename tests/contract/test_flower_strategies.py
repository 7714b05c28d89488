"""Flower's own strategies, and users', through the adapter, on real files with an integer buffer."""

from __future__ import annotations

import gc
import random
import sys
import types
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy

from fedfactory.contracts.errors import UnknownNameError, UsageError
from fedfactory.contracts.updates import Update
from fedfactory.coordinator.aggregating.aggregation import (
    AggregationError,
    SitePlan,
    StreamingAggregation,
)
from fedfactory.coordinator.aggregating.flower_loading import load_flower_strategy
from fedfactory.coordinator.flower_seam import assume_app_identity
from fedfactory.testing.strategies import TRAINING
from fedfactory.wire.arrays import read_arrays, spec_of, write_arrays
from strategies import make_strategy
from tests.contract.flower_rig import FLOWER, SITES, STRATEGIES, Federation, adapted, example


@pytest.fixture(autouse=True)
def _identity() -> None:
    assume_app_identity()


@pytest.fixture(autouse=True, scope="module")
def _frozen_garbage() -> Iterator[None]:
    """Flower collects garbage after every array: not through all that earlier tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def model() -> dict[str, np.ndarray]:
    return example()


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_runs_rounds(tmp_path: Path, model: dict[str, Any], name: str) -> None:
    count, options = STRATEGIES[name]
    sites = SITES[:count]
    results = []
    for folder in ("first", "second"):
        federation = Federation(tmp_path / folder, adapted(name, sites, **options), model)
        refs = [federation.run_round(sites) for _ in range(3)]
        made = read_arrays(federation.path)
        assert spec_of(made) == spec_of(model)
        assert made["norm.batches"] == 5
        assert not np.array_equal(made["conv.weight"], model["conv.weight"])
        assert federation.evaluate(sites)["accuracy"] == pytest.approx(0.5)
        results.append(refs)
    assert results[0] == results[1]
    assert len(set(results[0])) == 3


def test_flowers_fedavg_ours_and_numpy_agree(tmp_path: Path, model: dict[str, Any]) -> None:
    sites = SITES[:4]
    ours = StreamingAggregation(
        make_strategy("fedavg", {"weighting": "examples"}), training=TRAINING
    )
    flowers = Federation(tmp_path / "flower", adapted("FedAvg", sites), model)
    streamed = Federation(tmp_path / "ours", ours, model)
    for federation in (flowers, streamed):
        federation.run_round(sites, absent=("cyfronet",))
    counted = [site for site in sites if site != "cyfronet"]
    examples = [10 + 5 * SITES.index(site) for site in counted]
    deltas = [read_arrays(tmp_path / "ours" / f"{site}-1") for site in counted]
    for name, base in model.items():
        results = read_arrays(flowers.path)[name], read_arrays(streamed.path)[name]
        if base.dtype.kind == "f":
            mean = np.average(
                [d[name].astype(np.float64) for d in deltas], axis=0, weights=examples
            )
            np.testing.assert_allclose(results[1], base + mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(results[0], results[1], rtol=1e-6, atol=1e-6)
    evaluated = flowers.evaluate(sites), streamed.evaluate(sites)
    assert evaluated[0] == pytest.approx(evaluated[1])


def test_fedprox_reaches_the_order(tmp_path: Path, model: dict[str, Any]) -> None:
    federation = Federation(tmp_path, adapted("FedProx", proximal_mu=0.3), model)
    federation.run_round(SITES)
    assert {plan.training and plan.training.proximal_mu for plan in federation.plans} == {0.3}
    assert {plan.base for plan in federation.plans} == {federation.plans[0].base}


def test_a_fraction_of_the_sites_is_drawn_from_the_runs_seed(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    def chosen(folder: str, seed: int) -> list[tuple[str, ...]]:
        federation = Federation(
            tmp_path / folder, adapted("FedAvg", seed=seed, fraction_train=0.5), model
        )
        drawn = []
        for _ in range(4):
            random.seed(folder)  # what others draw does not matter
            federation.run_round(SITES)
            drawn.append(tuple(plan.site for plan in federation.plans))
        return drawn

    first = chosen("a", 1)
    assert chosen("b", 1) == first
    assert chosen("c", 2) != first
    assert all(len(sites) == 3 for sites in first)
    assert len(set(first)) > 1


def test_the_process_wide_generators_are_left_alone(tmp_path: Path, model: dict[str, Any]) -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    Federation(tmp_path, adapted("FedAvg", fraction_train=0.5), model).run_round(SITES)
    assert random.random() == expected


def test_no_evaluation_is_a_valid_choice(tmp_path: Path, model: dict[str, Any]) -> None:
    federation = Federation(tmp_path, adapted("FedAvg", fraction_evaluate=0.0), model)
    federation.run_round(SITES)
    assert federation.evaluate(SITES) == {}


def test_none_from_a_strategy_is_a_failed_round(tmp_path: Path, model: dict[str, Any]) -> None:
    federation = Federation(tmp_path, adapted("Bulyan", num_malicious_nodes=1), model)
    with pytest.raises(AggregationError, match="Bulyan made no model out of 6"):
        federation.run_round(SITES, absent=("lumi",))


def test_an_exit_exception_is_a_failed_round(tmp_path: Path, model: dict[str, Any]) -> None:
    federation = Federation(tmp_path, adapted("FedAvg", weighted_by_key="nothing"), model)
    with pytest.raises(AggregationError, match=r"InconsistentMessageReplies.*nothing"):
        federation.run_round(SITES)


def test_too_few_sites_are_told_before_a_strategy_waits(
    model: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"waits for 4 sites, there are 3"):
        adapted("FedAvg", SITES[:3], min_available_nodes=4)
    federation = Federation(tmp_path, adapted("FedAvg", SITES[:3], min_train_nodes=3), model)
    with pytest.raises(AggregationError, match="waits for 3 sites, there are 2"):
        federation.run_round(SITES[:2])


def test_withheld_counts_weigh_all_the_same(tmp_path: Path, model: dict[str, Any]) -> None:
    class Withholding(Federation):
        def train(self, plan: SitePlan) -> tuple[Update, Path]:
            update, path = super().train(plan)
            hidden = None if plan.site == "lumi" else update.examples
            return replace(update, examples=hidden), path

    flowers = Withholding(tmp_path / "flower", adapted("FedAvg"), model)
    uniform = make_strategy("fedavg", {"weighting": "uniform"})
    ours = Withholding(tmp_path / "ours", StreamingAggregation(uniform, training=TRAINING), model)
    for federation in (flowers, ours):
        federation.run_round(SITES)
    for name, value in read_arrays(ours.path).items():
        np.testing.assert_allclose(read_arrays(flowers.path)[name], value, rtol=1e-6, atol=1e-6)


# ---- users' own strategies ------------------------------------------------------------------


class Own(strategy.FedAvg):
    """Sends every site a model of its own, and halves the learning rate each round."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["lr"] = float(config["lr"]) / 2
        for i, node in enumerate(grid.get_node_ids()):
            record = ArrayRecord({k: Array(np.asarray(v.numpy() + i)) for k, v in arrays.items()})
            content = RecordDict({"arrays": record, "config": config})
            yield Message(content=content, message_type="train", dst_node_id=node)


class Warming(strategy.FedAvg):
    """Raises the learning rate above what the run was signed with."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["lr"] = 2 * float(config["lr"])
        return super().configure_train(server_round, arrays, config, grid)


class Waiting(strategy.FedAvg):
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        while len(list(grid.get_node_ids())) < 99:
            pass
        raise AssertionError


class Patient(strategy.FedAvg):
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.min_available_nodes = 99  # set too late for a look at the fields to see it
        return super().configure_train(server_round, arrays, config, grid)


class Sending(strategy.FedAvg):
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return grid.send_and_receive([])


class Asking(strategy.FedAvg):
    key, value = "dropout", 0.5

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config[self.key] = self.value
        return super().configure_train(server_round, arrays, config, grid)


class AskingWrongly(Asking):
    key, value = "batch-size", 0.5


class Renaming(strategy.FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        return ArrayRecord(arrays.to_numpy_ndarrays()), metrics


class Exploding(strategy.FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        return ArrayRecord(
            {k: Array(np.asarray(v.numpy() * np.inf)) for k, v in arrays.items()}
        ), metrics


class Looping(strategy.FedAvg):
    def start(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError


class Unfinished(strategy.Strategy):
    """Defines nothing."""


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    """The classes above, importable as a user's module would be."""
    module = types.ModuleType("users_strategies")
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, "users_strategies", module)
    return "users_strategies."


def test_a_site_may_start_from_a_model_of_its_own(
    tmp_path: Path, model: dict[str, Any], own: str
) -> None:
    sites = SITES[:3]
    federation = Federation(tmp_path, adapted(own + "Own", sites), model)
    federation.round = 1  # round 1 starts from the signed model: below
    federation.run_round(sites)
    assert [plan.training.lr for plan in federation.plans if plan.training] == [0.05] * 3
    first, *others = federation.plans
    assert (first.site, first.base) == ("cesga", write_arrays(tmp_path / "same", model))
    bases = [read_arrays(tmp_path / plan.base.digest) for plan in others]
    assert [base["head.scale"] for base in bases] == [2.5, 3.5]
    assert all(base["norm.batches"] == 5 for base in bases)
    # each reply is the site's own base plus its delta
    trained = [
        read_arrays(tmp_path / plan.base.digest)["norm.mean"]
        + read_arrays(tmp_path / f"{plan.site}-2")["norm.mean"]
        for plan in federation.plans
    ]
    expected = np.average(trained, axis=0, weights=[10, 15, 20])
    np.testing.assert_allclose(read_arrays(federation.path)["norm.mean"], expected)
    federation.run_round(sites)
    assert federation.plans[0].training
    assert federation.plans[0].training.lr == 0.025


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Waiting", "waits for more sites than the 7"),
        ("Patient", "waits for more sites than the 7"),
        ("Sending", r"Grid\.send_and_receive"),
        ("Asking", r"'dropout'.*known: batch-size"),
        ("AskingWrongly", "batch_size=0.5"),
        ("Renaming", "not the model's float tensors"),
        ("Exploding", "not finite"),
        ("Own", "a model of its own in round 1, which starts from the first model"),
        ("Warming", "lr=0.2: expected at most 0.1, which the operator signed"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_a_strategy_may_not_do(
    tmp_path: Path, model: dict[str, Any], own: str, name: str, words: str
) -> None:
    federation = Federation(tmp_path, adapted(own + name), model)
    with pytest.raises(AggregationError, match=words):
        federation.run_round(SITES)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, UsageError, r"expected module\.Class"),
        ({"_target_": "FedAvg"}, UsageError, r"expected module\.Class"),
        ({"_target_": "no_such_module.FedAvg"}, UsageError, "cannot be imported"),
        ({"_target_": FLOWER + "FedAvgg"}, UsageError, "cannot be imported"),
        ({"_target_": "collections.OrderedDict"}, UsageError, "expected a subclass"),
        ({"_target_": FLOWER + "Strategy"}, UsageError, "does not define aggregate_evaluate"),
        ({"_target_": "users_strategies.Unfinished"}, UsageError, "does not define"),
        ({"_target_": FLOWER + "FedMedian", "beta": 1}, UnknownNameError, "min_train_nodes"),
        ({"_target_": FLOWER + "QFedAvg"}, UsageError, r"\+strategy\.client_learning_rate="),
        ({"_target_": FLOWER + "FedTrimmedAvg", "beta": 0.7}, UsageError, "beta"),
        ({"_target_": FLOWER + "FedTrimmedAvg", "beta": "x"}, UsageError, "beta"),
        ({"_target_": FLOWER + "FedXgbBagging"}, UsageError, "refused.*trees"),
        ({"_target_": FLOWER + "FedXgbCyclic"}, UsageError, "refused.*trees"),
        (
            {"_target_": FLOWER + "DifferentialPrivacyClientSideFixedClipping"},
            UsageError,
            "refused.*privacy",
        ),
        (
            {"_target_": FLOWER + "DifferentialPrivacyServerSideAdaptiveClipping"},
            UsageError,
            "refused.*privacy",
        ),
        ({"_target_": "users_strategies.Looping"}, UsageError, r"refused.*start\(\)"),
    ],
)
def test_what_cannot_be_loaded(
    own: str, options: dict[str, Any], error: type[UsageError], words: str
) -> None:
    with pytest.raises(error, match=words):
        load_flower_strategy(options, any_class=True)
