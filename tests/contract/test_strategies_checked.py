"""What a coordinator makes of a submitted strategy: Flower's own and installed ones, nothing else."""

from __future__ import annotations

import contextlib
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest
from flwr.serverapp import strategy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts import plugins
from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.run_plan import EvaluationRules, Mode, RoundRules, RunPlan
from fedfactory.coordinator.aggregating import flower_loading
from fedfactory.coordinator.aggregating.strategy_loading import check_strategy
from fedfactory.testing.strategies import SITES

TARGET = "_target_"
MINE = f"{__name__}.Mine"
TRAINING = TrainParameters(
    local_epochs=1, batch_size=1, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)
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


def plan(name: str, *, mode: Mode = "sync", sites: tuple[str, ...] = SITES) -> RunPlan:
    return RunPlan(
        max_examples={},
        run_id="run",
        task="digits",
        strategy=name,
        seed=1,
        rounds=3,
        sites=sites,
        rules=RoundRules(
            mode=mode,
            quorum=2,
            required=(),
            deadline_s=60.0,
            lateness_s=0.0,
            retries=0,
            select="all",
            per_round=None,
            extra=0,
            buffer=2 if mode == "async" else None,
        ),
        evaluation=EvaluationRules(
            sites=True,
            central=False,
            metric="loss",
            higher_is_better=False,
            patience=None,
            min_delta=0.0,
            keep="last",
        ),
        privacy=None,
        checkpoints=3,
    )


def custom(target: Any, **options: Any) -> None:
    check_strategy(plan("custom"), {TARGET: target, **options}, TRAINING, any_class=False)


def test_what_may_be_asked_for() -> None:
    check_strategy(plan("fedavg"), {"weighting": "uniform"}, TRAINING, any_class=False)
    check_strategy(plan("fedbuff", mode="async"), {"server_lr": 0.5}, TRAINING, any_class=False)
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
    with pytest.raises(UsageError, match=r"is refused: a coordinator makes.*FedYogi.*Mine"):
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
        check_strategy(plan("custom"), options, TRAINING, any_class=False)


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "custom"])
def test_async_takes_only_who_says_how_a_stale_update_enters(name: str) -> None:
    options = {
        "fedavg": {"weighting": "uniform"},
        "fedprox": {"weighting": "uniform", "mu": 0.1},
        "custom": {TARGET: MINE},
    }[name]
    check_strategy(plan(name), options, TRAINING, any_class=False)
    with pytest.raises(UsageError, match=rf"strategy={name}.*use strategy=fedbuff, or rounds.mode"):
        check_strategy(plan(name, mode="async"), options, TRAINING, any_class=False)


def test_a_flower_strategy_by_its_entry_points_name_is_told_the_way() -> None:
    with pytest.raises(UsageError, match=r"strategy=custom strategy\._target_="):
        check_strategy(plan("mine"), {}, TRAINING, any_class=False)


def test_any_class_takes_what_can_be_imported() -> None:
    check_strategy(
        plan("custom"),
        {TARGET: "flwr.serverapp.strategy.fedavg.FedAvg"},
        TRAINING,
        any_class=True,
    )
    with pytest.raises(UsageError, match="expected a subclass"):
        check_strategy(plan("custom"), {TARGET: "os.system"}, TRAINING, any_class=True)


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
        check_strategy(plan(name, mode=mode), options, TRAINING, any_class=False)
    assert "NoStrategy" not in made
    assert set(sys.modules) == before
    if made:
        assert (name, options[TARGET], mode) == ("custom", MINE, "sync")
