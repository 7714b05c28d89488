"""Values of every kind a strategy may remember, there and back; what is shared stays shared."""

from __future__ import annotations

import enum
import itertools
import json
import logging
import math
import random
import re
import tempfile
import threading
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedfactory.contracts.errors import IntegrityError
from fedfactory.coordinator.aggregating import flower_state
from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.flower_state import StrategyMemory
from fedfactory.coordinator.aggregating.state_encoding import Graph


class Holder(strategy.FedAvg):
    """Holds what `make` gives, from construction on; `late` is put there afterwards."""

    def __init__(self, make: Callable[[], Any] = dict) -> None:
        super().__init__()
        self.held = make()
        self.late: Any = None


@dataclass(frozen=True, slots=True)
class Point:
    x: Any
    y: Any = None


class Phase(enum.Enum):
    WARM = 1
    MAIN = "two"


class Slotted:
    __slots__ = ("__secret", "value")

    def __init__(self) -> None:
        self.value = 1
        self.__secret = [1]

    def add(self) -> None:
        self.__secret.append(len(self.__secret))

    def told(self) -> tuple[int, list[int]]:
        return self.value, self.__secret


def there_and_back(
    value: Any, *, make: Callable[[], Any] = dict, change: Callable[[Any], Any] = lambda held: held
) -> Holder:
    """Return a fresh holder with the memory of one whose `late` is `value`."""
    holder, fresh = Holder(make), Holder(make)
    memory = StrategyMemory(holder, {})
    change(holder.held)
    holder.late = value
    with tempfile.TemporaryDirectory() as name:
        ref = memory.save(Path(name))
        assert ref is not None
        restored = StrategyMemory(fresh, {})
        restored.restore(Path(name) / ref.digest.removeprefix("sha256:"))
        assert restored.save(Path(name)) == ref
    return fresh


def same(one: Any, two: Any) -> bool:
    """Whether two values are the same to the bit, and of the same kinds."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray | np.generic):
        alike = one.dtype == two.dtype and one.shape == two.shape and one.strides == two.strides
        return alike and one.tobytes() == two.tobytes()
    if isinstance(one, Point):
        one, two = (one.x, one.y), (two.x, two.y)
    if isinstance(one, float):
        one, two = repr(one), repr(two)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return all(map(same, one, two)) and all(map(same, one.values(), two.values()))
    return bool(one == two)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(Phase)
    | npst.arrays(st.sampled_from(["<f4", ">f8", "<i8", "|b1", "<c16", "<U3"]), ()).map(
        lambda a: a[()]
    )
)
keys = st.integers() | st.text() | st.booleans() | st.tuples(st.integers(), st.text())
arrays = npst.arrays(
    st.sampled_from(["<f2", "<f4", "<f8", ">i4", "|u1", "<u2", "|b1", "<c8", "<M8[s]", "|S3"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
) | npst.arrays("<f8", (3, 4, 5)).flatmap(
    lambda a: st.sampled_from([a, a.T, a[::2], a[:, ::-1], a[1], a[..., 2:], np.asfortranarray(a)])
)
values = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=3)
        | st.dictionaries(keys, inner, max_size=3).map(OrderedDict)
        | st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=3))
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
        | st.dictionaries(keys, st.integers(0, 9)).map(Counter)
        | st.builds(Point, x=inner, y=inner)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(value=values)
def test_values_come_back_to_the_bit(value: Any) -> None:
    assert same([value], there_and_back([value]).late)


def test_flowers_records_come_back() -> None:
    array = Array(np.arange(6, dtype=np.float32).reshape(2, 3))
    record = RecordDict(
        {
            "a": ArrayRecord({"w": array, "v": array}),
            "m": MetricRecord({"x": 1.5, "l": [1, 2]}),
            "c": ConfigRecord({"t": "text", "b": b"bytes", "f": [1.0, 2.0], "y": True}),
        }
    )
    record["a"]["v"] = record["a"]["w"]
    found = there_and_back(record).late
    assert found == record
    assert found["a"]["w"] is found["a"]["v"]
    assert np.array_equal(found["a"]["w"].numpy(), array.numpy())


GENERATORS: dict[str, Callable[[], Any]] = {
    **{
        name: (lambda name=name: np.random.Generator(getattr(np.random, name)(7)))
        for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
    },
    "RandomState": lambda: np.random.RandomState(7),
    "RandomState of Philox": lambda: np.random.RandomState(np.random.Philox(7)),
    "Random": lambda: random.Random(7),
}


def draws(generator: Any) -> list[float]:
    if isinstance(generator, random.Random):
        return [generator.gauss(0, 1), generator.random(), generator.gauss(0, 1)]
    return [*generator.normal(size=3).tolist(), *generator.permutation(9).tolist()]


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_draw_on(name: str) -> None:
    early, late = GENERATORS[name](), GENERATORS[name]()
    draws(late)
    found = there_and_back(late, make=GENERATORS[name], change=draws)
    draws(early)
    assert draws(found.held) == draws(early)
    assert draws(found.late) == draws(late)


def test_a_generator_spawns_on() -> None:
    def spawn(generator: np.random.Generator) -> np.random.Generator:
        return generator.spawn(2)[1]

    held, late = np.random.default_rng(3), np.random.default_rng([4, 5])
    spawn(late)
    found = there_and_back(late, make=lambda: np.random.default_rng(3), change=spawn)
    spawn(held)
    assert draws(spawn(found.held)) == draws(spawn(held))
    assert draws(spawn(found.late)) == draws(spawn(late))


def test_what_is_shared_stays_shared() -> None:
    inner, generator = [1], np.random.default_rng(1)
    array = np.arange(12.0).reshape(3, 4)
    loop: list[Any] = []
    loop.append({"loop": loop})
    shared = {
        "lists": (inner, {"x": inner}),
        "draws": [generator, generator],
        "views": [array, array[1], array.T, array[:, ::-2]],
        "loop": loop,
    }
    found = there_and_back(shared).late
    assert found["lists"][0] is found["lists"][1]["x"]
    assert found["draws"][0] is found["draws"][1]
    assert found["loop"][0]["loop"] is found["loop"]
    whole, row, turned, cut = found["views"]
    whole[1, 3] = 99.0
    assert row[3] == turned[3, 1] == cut[1, 0] == 99.0
    turned[0, 0] = -1.0
    assert whole[0, 0] == -1.0


def test_what_construction_made_is_filled_in_place() -> None:
    """Functions that hold on to it see what was restored."""

    def make() -> dict[str, Any]:
        memory: dict[str, list[int]] = defaultdict(lambda: [0])
        window: deque[int] = deque(maxlen=2)
        return {
            "memory": memory,
            "read": lambda: dict(memory),
            "window": window,
            "slots": Slotted(),
            "lock": threading.Lock(),
            "log": logging.getLogger("x"),
            "pattern": re.compile("x"),
            "class": Slotted,
        }

    def change(held: dict[str, Any]) -> None:
        held["memory"]["a"].append(5)
        held["window"].extend((1, 2, 3))
        held["slots"].add()

    found = there_and_back(1, make=make, change=change).held
    assert found["read"]() == {"a": [0, 5]}
    assert found["memory"]["new"] == [0]
    assert found["window"] == deque([2, 3])
    assert found["window"].maxlen == 2
    assert found["slots"].told() == (1, [1, 1])
    with found["lock"]:
        assert found["class"] is Slotted


def test_attributes_that_are_gone_stay_gone() -> None:
    def change(held: Any) -> None:
        del held.y

    class Plain:
        def __init__(self) -> None:
            self.x = self.y = 1

    found = there_and_back(1, make=Plain, change=change).held
    assert vars(found) == {"x": 1}


@dataclass
class _Loop:
    own: Any


def _endless() -> Any:
    chain: list[Any] = []
    for _ in range(100_000):
        chain = [chain]
    return chain


def _own_loop() -> tuple[Any, ...]:
    inside: list[Any] = []
    held = (inside,)
    inside.append(held)
    return held


class _Local:
    pass


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (itertools.count(), r"strategy\.late\[0\] holds a itertools\.count, whose changes"),
        ((i for i in range(3)), "builtins.generator"),
        (_Local(), r"_Local, which was put there after construction"),
        (math.sin, "after construction"),
        (lambda: 1, "after construction"),
        (defaultdict(lambda: 1), "a factory of its own"),
        (np.array([{}], dtype=object), "dtype object"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]), "which is not one number each"),
        (np.ma.masked_array([1, 2]), "MaskedArray"),
        (bytearray(b"x"), "bytearray"),
        (memoryview(b"x"), "memoryview"),
        ({(_Local(),): 1}, "a key of strategy"),
        (_endless(), "nested too deeply"),
        (_own_loop(), "which holds itself"),
        (ValueError("x"), "ValueError"),
        pytest.param(10**5000, "digits", id="a very long number"),
        (open, "after construction"),
        (random.SystemRandom(), "SystemRandom"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(value: Any, words: str) -> None:
    with pytest.raises(AggregationError, match=words):
        there_and_back([value])


def test_what_cannot_be_saved_is_refused_before_the_first_round() -> None:
    for make, words in (
        (itertools.count, r"strategy\.held holds a itertools"),
        (_endless, "deeply"),
    ):
        with pytest.raises(AggregationError, match=words):
            StrategyMemory(Holder(make), {})


def test_saving_copies_no_array_and_restoring_each_once(tmp_path: Path) -> None:
    arrays = {str(i): np.full(500_000, i, dtype=np.float32) for i in range(20)}
    whole = sum(array.nbytes for array in arrays.values())
    holder, fresh = Holder(), Holder()
    memory, restored = StrategyMemory(holder, {}), StrategyMemory(fresh, {})
    holder.late = [arrays, ArrayRecord({"x": Array(arrays["1"])})]
    tracemalloc.start()
    try:
        ref = memory.save(tmp_path)
        saving = tracemalloc.get_traced_memory()[1]
        assert ref is not None
        tracemalloc.reset_peak()
        restored.restore(tmp_path / ref.digest.removeprefix("sha256:"))
        restoring = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert saving < 0.15 * whole
    assert restoring < 1.3 * whole


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Holder()
    memory = StrategyMemory(holder, {})
    holder.late = np.zeros(4)

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedfactory.coordinator.aggregating.flower_state.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        memory.save(tmp_path)
    assert not list(tmp_path.iterdir())


pieces = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=8) | st.sampled_from(
        ["ref", "tuple", "scalar", "object", "opaque", "at", "kind", "items", "list", "dict",
         "strategy", "strategy.held", "class", "builtins:object", "os:system", "enum", "ndarray", "form",
         "Generator", "state", "array", "bytes", "<f8", "factory", "defaultdict", "deque", "Array"]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["kind", "items", "at", "class", "state", "array", "form", "offset", "data", "maxlen",
         "factory"]), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(root=pieces, nodes=st.lists(pieces, max_size=4))
def test_a_graph_of_another_form_is_an_integrity_error(root: Any, nodes: list[Any]) -> None:
    text = json.dumps({"root": {"class": "x", "strategy": root}, "nodes": nodes})
    with tempfile.TemporaryDirectory() as name:
        graph = Graph(text=text, arrays=(np.arange(9, dtype=np.uint8),))
        ref, path = flower_state._write(Path(name), graph)
        path = path.rename(Path(name) / ref.digest.removeprefix("sha256:"))
        with pytest.raises(IntegrityError, match="not the memory of such a Holder"):
            StrategyMemory(Holder(), {}).restore(path)
