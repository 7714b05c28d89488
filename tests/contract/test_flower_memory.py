"""A run that is cut and goes on is the run that was not: for every strategy, at every round.

As the runner does it: memory is saved after each `close`; a fresh strategy takes it up, and every
call since then is made again.
"""

from __future__ import annotations

import gc
import itertools
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, strategy

from fedfactory.contracts.errors import IntegrityError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.flower_grid import node_ids
from fedfactory.coordinator.flower_seam import assume_app_identity
from fedfactory.wire.arrays import file_ref
from tests.contract.flower_rig import SITES, STRATEGIES, Federation, adapted, example

ROUNDS = 4
Trained = tuple[ArrayRecord | None, MetricRecord | None]


@pytest.fixture(autouse=True)
def _identity() -> None:
    assume_app_identity()


@pytest.fixture(autouse=True, scope="module")
def _frozen_garbage() -> Iterator[None]:
    """Flower collects garbage after every array: not through all that earlier tests left."""
    gc.freeze()
    yield
    gc.unfreeze()


class Remembering(strategy.FedAvg):
    """Momentum by node id, and most of what attributes may be; what is shared must stay shared."""

    def __init__(self, *, beta: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta
        self.momentum: dict[int, list[np.ndarray]] = {}
        self.window: list[float] = []
        self.history: dict[str, list[int]] = {}
        self.counts: dict[int, int] = {}
        self.chosen: list[Any] = []
        self.best: ArrayRecord | None = None
        self.last: ArrayRecord | None = None
        self.scores: np.ndarray = np.zeros(3)
        self.tail = {"scores": self.scores}
        self.matrix = np.zeros((4, 5), dtype=np.float32, order="F")
        self.config: ConfigRecord | None = None
        self.mean = np.mean
        self.ranked = lambda: sorted(self.counts, key=lambda node: (self.counts[node], node))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        config["lr"] = float(config["lr"]) * 0.9
        self.config = config  # the run's own: set in aggregate_train, it reaches the next round
        for node in grid.get_node_ids():
            self.counts.setdefault(node, 0)
        nodes = self.ranked()[:3]
        self.chosen = [np.int64(node) for node in nodes]
        for node in self.chosen:
            self.counts[int(node)] += 1 + node % 2
        content = RecordDict({"arrays": arrays, "config": config})
        for node in nodes:
            yield Message(content=content, message_type="train", dst_node_id=node)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        found = list(replies)
        assert self.config is not None
        self.config["lr"] = float(self.config["lr"]) * 0.99
        moved: list[list[np.ndarray]] = []
        for reply in found:
            node = reply.metadata.src_node_id
            assert np.int64(node) in self.chosen
            arrays = [a.numpy() for a in reply.content["arrays"].values()]
            before = self.momentum.get(node, [np.zeros_like(a) for a in arrays])
            self.momentum[node] = [
                self.beta * b + (1 - self.beta) * a for a, b in zip(arrays, before, strict=True)
            ]
            moved.append(self.momentum[node])
            self.history.setdefault(str(node), []).append(server_round)
        names = list(found[0].content["arrays"])
        noise = float(np.random.standard_normal()) * 0.01 + len(self.window)  # noqa: NPY002
        self.window = [*self.window, noise][-2:]
        self.tail["scores"] += noise  # moves self.scores too
        self.matrix *= 0.5
        self.matrix += moved[0][-1][:1].astype(np.float32) * np.arange(20).reshape(4, 5)
        extra = self.scores[1] + self.matrix.sum()
        self.last = ArrayRecord(
            {
                name: Array(np.asarray(self.mean([m[i] for m in moved], axis=0) + extra))
                for i, name in enumerate(names)
            }
        )
        if self.best is None or server_round % 2:
            self.best = self.last
        assert (self.best is self.last) == (server_round == 1 or server_round % 2 == 1)
        return self.last, None

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        metrics = super().aggregate_evaluate(server_round, replies)
        assert metrics is not None
        assert self.best is not None
        self.momentum = {node: [a * 0.99 for a in m] for node, m in self.momentum.items()}
        extra = float(next(iter(self.best.values())).numpy().sum()) + sum(
            map(sum, self.history.values())
        )
        return MetricRecord({**metrics, "extra": extra})


class Slowing(strategy.FedYogi):
    """A subclass of one with memory: its own stands beside that of its base."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norms: list[np.float64] = []

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.norms.append(np.float64(sum(np.linalg.norm(a.numpy()) for a in arrays.values())))
        self.eta = float(self.eta / (1.0 + self.norms[-1] * len(self.norms)))
        return arrays, metrics


class Telling(strategy.FedAdam):
    """Holds what cannot be saved, and says itself what must be, its base's memory included."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps = itertools.count()
        self.done = 0
        self.rng = np.random.default_rng(11)
        self.seen = {1.0}

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        self.done = next(self.steps) + 1
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        self.seen.add(self.rng.standard_normal())
        return ArrayRecord(
            {
                k: Array(np.asarray(v.numpy() + self.done + max(self.seen), v.numpy().dtype))
                for k, v in arrays.items()
            }
        ), metrics

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("current_arrays", "m_t", "v_t")}
        rng = self.rng.bit_generator.state
        return {"done": self.done, "rng": rng, "seen": sorted(self.seen), "kept": kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.steps = itertools.count(self.done)
        self.rng.bit_generator.state = state["rng"]
        self.seen = set(state["seen"])
        vars(self).update(state["kept"])


class Counting(strategy.FedAvg):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = {"deep": [itertools.count()]}


class CountingLate(strategy.FedAvg):
    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        self.notes = {"x": [itertools.count()]}
        return super().aggregate_train(server_round, replies)


class Swapping(strategy.FedAvg):
    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        self.train_metrics_aggr_fn = lambda *_: MetricRecord({})
        return super().aggregate_train(server_round, replies)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("users_strategies")
    vars(module).update(globals())
    text = (Path(__file__).parents[2] / "docs/researcher.md").read_text()
    (example_code,) = re.findall(r"```python\n(class Noisy.*?)```", text, re.DOTALL)
    vars(module)["FedAvgM"] = strategy.FedAvgM
    exec(example_code, vars(module))
    monkeypatch.setitem(sys.modules, "users_strategies", module)
    return "users_strategies."


CASES = {
    **STRATEGIES,
    "FedAvg of a few": (5, {"fraction_train": 0.5, "fraction_evaluate": 0.5}),
    "users_strategies.Remembering": (5, {"beta": 0.7}),
    "users_strategies.Slowing": (3, {}),
    "users_strategies.Telling": (3, {}),
    "users_strategies.Noisy": (3, {"server_momentum": 0.9}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("own")
def test_it_goes_on_as_if_nothing_had_happened(tmp_path: Path, name: str) -> None:
    count, options = CASES[name]
    sites = SITES[:count]

    def made() -> Any:
        return adapted(name.split(maxsplit=1)[0], sites, **options)

    federation = Federation(tmp_path / "undisturbed", made(), example())
    told: list[tuple[BlobRef, tuple[Any, ...], dict[str, float]]] = []
    memories: list[tuple[BlobRef | None, BlobRef | None]] = []  # after close, after evaluation
    for _ in range(ROUNDS):
        ref = federation.run_round(sites)
        after_close = federation.aggregation.save(tmp_path)
        plans = tuple((plan.site, plan.training) for plan in federation.plans)
        told.append((ref, plans, federation.evaluate(sites)))
        memories.append((after_close, federation.aggregation.save(tmp_path)))
    assert len({ref for ref, _, _ in told}) == ROUNDS
    for cut, when in itertools.product(range(ROUNDS), ("closed", "evaluated")):
        resumed = Federation(tmp_path / f"{cut}-{when}", made(), example())
        resumed.round, resumed.ref = cut + 1, told[cut][0]
        resumed.path = tmp_path / "undisturbed" / f"round-{cut + 1}"
        memory = memories[cut][when == "evaluated"]
        resumed.aggregation.restore(memory and tmp_path / memory.digest.removeprefix("sha256:"))
        assert resumed.aggregation.save(tmp_path) == memory
        if when == "closed":
            assert resumed.evaluate(sites) == told[cut][2]
        for later in range(cut + 1, ROUNDS):
            ref = resumed.run_round(sites)
            plans = tuple((plan.site, plan.training) for plan in resumed.plans)
            assert (ref, plans, resumed.evaluate(sites)) == told[later]
            assert resumed.aggregation.save(tmp_path) == memories[later][1]


def test_whether_there_is_a_memory_and_what_it_weighs(tmp_path: Path) -> None:
    for name, (count, options) in STRATEGIES.items():
        federation = Federation(tmp_path / name, adapted(name, SITES[:count], **options), example())
        assert federation.aggregation.save(tmp_path) is None
        federation.run_round(SITES[:count])
        ref = federation.aggregation.save(tmp_path)
        remembers = name in ("FedAvgM", "FedAdagrad", "FedAdam", "FedYogi", "QFedAvg", "FedProx")
        assert (ref is not None) == remembers, name
        if ref is not None:
            path = tmp_path / ref.digest.removeprefix("sha256:")
            assert file_ref(path) == ref
            assert path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("Counting", UsageError, r"Counting: strategy\.inner\['deep'\]\[0\] holds a itertools"),
        ("CountingLate", AggregationError, r"strategy\.notes\['x'\]\[0\] holds a itertools"),
        ("Swapping", AggregationError, r"strategy\.train_metrics_aggr_fn holds a builtins\.func"),
    ],
)
def test_what_cannot_be_saved_is_named(
    tmp_path: Path, own: str, name: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        _one_round_saved(tmp_path, own + name)


def _one_round_saved(folder: Path, name: str) -> None:
    federation = Federation(folder, adapted(name, SITES[:3]), example())
    federation.run_round(SITES[:3])
    federation.aggregation.save(folder)


def test_another_strategys_memory_and_a_damaged_one_are_refused(tmp_path: Path, own: str) -> None:
    federation = Federation(tmp_path / "a", adapted("FedAdam", SITES[:3]), example())
    federation.run_round(SITES[:3])
    ref = federation.aggregation.save(tmp_path)
    assert ref is not None
    path = tmp_path / ref.digest.removeprefix("sha256:")
    for other in ("FedYogi", own + "Telling"):
        with pytest.raises(IntegrityError, match="strategy or its options changed"):
            adapted(other, SITES[:3]).restore(path)
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole[:-1] + b"x", bytes(len(whole))):
        path.write_bytes(broken)
        with pytest.raises(IntegrityError, match="not what was written"):
            adapted("FedAdam", SITES[:3]).restore(path)


def test_node_ids_follow_from_names_alone() -> None:
    ids = node_ids(SITES)
    assert ids == {site: node_ids((site,))[site] for site in SITES}
    assert ids["lumi"] == 4_294_659_381_441_420_927
    assert all(0 <= node < 2**63 for node in ids.values())


def test_two_names_of_one_id_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def digest(self) -> bytes:
            return bytes(32)

    monkeypatch.setattr(
        "fedfactory.coordinator.aggregating.flower_grid.hashlib.sha256",
        lambda _: Same(),
        raising=True,
    )
    with pytest.raises(UsageError, match="'cesga' and 'lumi' have the same node id"):
        node_ids(("lumi", "cesga"))
