"""What a coordinator makes of a submitted strategy: Flower's own and installed ones, nothing else."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from flwr.serverapp import strategy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts import plugins
from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.plans import Mode
from fedfactory.coordinator.aggregating import flower_loading
from fedfactory.coordinator.aggregating.strategy_loading import check_strategy
from fedfactory.testing.strategies import SITES
from tests.run_plans import TERMS

TARGET = "_target_"
MINE = f"{__name__}.Mine"
made: list[str] = []


class Mine(strategy.FedAvg):
    """An installed package's."""

    def __init__(self, **options: Any) -> None:
        made.append("Mine")
        super().__init__(**options)


class NoStrategy:
    """An installed package's mistake; it must not even be made."""

    def __init__(self, **options: Any) -> None:
        del options
        made.append("NoStrategy")


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tuple(
        EntryPoint(name.lower(), f"{__name__}:{name}", "fedfactory.strategies")
        for name in ("Mine", "NoStrategy")
    )
    monkeypatch.setattr(flower_loading, "entry_points", lambda group: entries)
    monkeypatch.setattr(plugins, "_entries", lambda group: entries)
    made.clear()


def check(
    name: str,
    options: dict[Any, Any],
    *,
    mode: Mode = "sync",
    any_class: bool = False,
) -> None:
    terms = replace(TERMS, strategy=name, strategy_options=options, mode=mode, sites=SITES)
    check_strategy(terms, any_class=any_class)


def custom(target: Any, **options: Any) -> None:
    check("custom", {TARGET: target, **options})


def test_what_may_be_asked_for() -> None:
    check("fedavg", {"weighting": "uniform"})
    check("fedbuff", mode="async", options={"server_lr": 0.5})
    custom("flwr.serverapp.strategy.FedAdam", eta=0.1)
    custom(MINE, fraction_train=0.5)
    assert made == ["Mine"]


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "flwr.serverapp.strategy.fedavg.FedAvg",
        "flwr.serverapp.strategy.strategy.Strategy",
        "flwr.serverapp.strategy.log",
        "flwr.serverapp.strategy.__loader__",
        "flwr.serverapp.strategy.FedAvg.__init__",
        "flwr.serverapp.strategy.FedAvg.__init__.__globals__",
        "flwr.serverapp.strategy..FedAvg",
        " flwr.serverapp.strategy.FedAvg",
        "flwr.server.strategy.FedAvg",
        "strategies.fedavg.FedAvg",
        f"{__name__}.made",
        "fedfactory.testing.strategies.StreamingStrategyContract",
    ],
)
def test_any_other_target_is_refused_before_it_is_imported(target: str) -> None:
    before = set(sys.modules)
    with pytest.raises(
        UsageError, match=r"is refused: strategy_classes is `installed` here, .*FedYogi.*Mine"
    ):
        custom(target)
    assert set(sys.modules) == before
    assert made == []


def test_a_class_is_judged_before_it_is_made() -> None:
    with pytest.raises(UsageError, match="expected a subclass"):
        custom(f"{__name__}.NoStrategy")
    assert made == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, r"_target_ is not given: expected module\.Class"),
        ({TARGET: f"{__name__}:Mine"}, r"expected module\.Class"),
        ({TARGET: ["a.b"]}, r"expected module\.Class"),
        ({TARGET: {"_target_": "os.system"}}, r"expected module\.Class"),
        ({TARGET: MINE, "fraction_train": {"_target_": "os.system"}}, "nested"),
        ({TARGET: MINE, "fraction_train": [{"_target_": "os.system"}]}, "nested"),
        ({TARGET: MINE, "fraction_train": [[1]]}, "nested"),
        ({TARGET: MINE, "_partial_": True}, "_partial_ is refused"),
        ({TARGET: MINE, "_args_": ["x"]}, "_args_ is refused"),
        ({TARGET: MINE, "_recursive_": False}, "_recursive_ is refused"),
        ({TARGET: MINE, "_convert_": "all"}, "_convert_ is refused"),
        ({TARGET: MINE, 3: 1}, "strategy.3 is refused"),
        ({TARGET: MINE, "min_available_nodes": 9}, "waits for 9 sites, there are 3"),
    ],
)
def test_nothing_is_hidden_in_options(options: dict[Any, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check("custom", options)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "custom"])
def test_async_takes_only_who_says_how_a_stale_update_enters(name: str) -> None:
    options = {
        "fedavg": {"weighting": "uniform"},
        "fedprox": {"weighting": "uniform", "mu": 0.1},
        "custom": {TARGET: MINE},
    }[name]
    check(name, options)
    with pytest.raises(UsageError, match=rf"strategy={name}.*use strategy=fedbuff, or rounds.mode"):
        check(name, mode="async", options=options)


def test_a_flower_strategy_by_its_entry_points_name_is_told_the_way() -> None:
    with pytest.raises(UsageError, match=r"strategy=custom strategy\._target_="):
        check("mine", {})


def test_any_class_takes_what_can_be_imported() -> None:
    check("custom", {TARGET: "flwr.serverapp.strategy.fedavg.FedAvg"}, any_class=True)
    with pytest.raises(UsageError, match="expected a subclass"):
        check("custom", {TARGET: "os.system"}, any_class=True)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
words = st.sampled_from(
    [TARGET, "_partial_", "_args_", "weighting", "mu", "server_lr", "fraction_train", "beta",
     "min_available_nodes", "self", "strategy", "__class__", ""]
)  # fmt: skip
targets = st.sampled_from(
    [
        "flwr.serverapp.strategy.FedAvg",
        "flwr.serverapp.strategy.Krum",
        MINE,
        "os.system",
        "a.b",
        ".",
    ]
) | st.text(max_size=30)
nested = st.recursive(
    scalars | targets,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=300)
@given(
    name=st.sampled_from(["custom", "fedavg", "fedprox", "fedbuff", "mine", "nostrategy"])
    | st.text(max_size=9),
    mode=st.sampled_from(["sync", "async"]),
    options=st.dictionaries(words | st.text(max_size=9), nested, max_size=4),
    target=st.none() | targets,
)
def test_whatever_is_submitted_is_made_or_refused_with_a_sentence(
    name: str, mode: Mode, options: dict[str, Any], target: str | None
) -> None:
    if target is not None:
        options = {**options, TARGET: target}
    made.clear()
    before = set(sys.modules)
    with contextlib.suppress(UsageError):
        check(name, mode=mode, options=options)
    assert "NoStrategy" not in made
    assert set(sys.modules) == before
    if made:
        assert (name, options[TARGET], mode) == ("custom", MINE, "sync")
