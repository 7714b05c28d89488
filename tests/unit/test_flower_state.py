"""Values of every kind that a strategy may remember, there and back; the rest is refused by name."""

from __future__ import annotations

import collections
import copy
import enum
import itertools
import json
import logging
import math
import random
import struct
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp import strategy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedfactory.contracts.errors import IntegrityError, UsageError
from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.flower_records import RECORDS
from fedfactory.coordinator.aggregating.flower_state import StrategyMemory
from fedfactory.coordinator.aggregating.memory_values import MAX_DEPTH
from fedfactory.wire.arrays import file_ref, write_arrays


class Holder(strategy.FedAvg):
    """Holds what `make` gives it, from construction on; `late` is put there afterwards."""

    def __init__(self, make: Callable[[Holder], Any] = lambda _: None) -> None:
        super().__init__()
        self.held = make(self)
        self.late: Any = None

    def half(self) -> float:
        return 0.5


def watched(holder: Any) -> StrategyMemory:
    return StrategyMemory(holder, {}, RECORDS)


def saved(memory: StrategyMemory, folder: Path) -> Path:
    ref = memory.save(folder)
    assert ref is not None
    path = folder / ref.digest.removeprefix("sha256:")
    assert file_ref(path) == ref
    return path


def there_and_back(value: Any, make: Callable[[Holder], Any] = lambda _: None) -> Holder:
    """Return a fresh holder with the memory of one whose `late` is `value`; it saves the same."""
    holder, fresh = Holder(make), Holder(make)
    memory = watched(holder)
    holder.late = value
    with tempfile.TemporaryDirectory() as name:
        path = saved(memory, Path(name))
        restored = watched(fresh)
        restored.restore(path)
        assert saved(restored, Path(name)) == path
    return fresh


def same(one: Any, two: Any) -> bool:
    """Whether two values are the same to the bit, of the same types, laid out alike."""
    if type(one) is not type(two):
        return False
    if isinstance(one, np.ndarray | np.generic):
        alike = one.dtype == two.dtype and one.shape == two.shape
        if isinstance(one, np.ndarray):
            assert one.strides == two.strides or not one.size
            assert one.flags.writeable == two.flags.writeable
        return alike and one.tobytes() == two.tobytes()
    if isinstance(one, float | complex):
        one, two = (struct.pack("<2d", x.real, x.imag) for x in (one, two))
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return same(list(one), list(two)) and same(list(one.values()), list(two.values()))
    return bool(one == two)


def numpy_scalar(dtype: str) -> st.SearchStrategy[Any]:
    return npst.arrays(dtype, ()).map(lambda array: array[()])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.sampled_from(
        ["<f4", ">f8", "<f2", "<i8", "|u1", "|b1", "<c16", "<U3", "|S2", "<M8[s]"]
    ).flatmap(numpy_scalar)
)
keys = st.integers() | st.text() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
dense = npst.arrays(
    st.sampled_from(["<f2", "<f4", "<f8", ">i4", "|u1", "<u2", "|b1", "<c8", "<M8[s]", "|S3"]),
    npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
views = npst.arrays("<f8", (3, 4, 5)).flatmap(
    lambda a: st.sampled_from(
        [
            *(a, a.T, a.transpose(1, 0, 2), a[::2], a[:, ::-1], a[1], a[..., 2:], a[:, 3:3]),
            *(np.asfortranarray(a), np.broadcast_to(a[0], (2, 4, 5)), a[None, :, 1:2], a[2, 3, 4:]),
        ]
    )
)
values = st.recursive(
    scalars | dense | views,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.just(())
        | st.dictionaries(keys | numpy_scalar("<i4"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(value=values)
def test_values_come_back_to_the_bit(value: Any) -> None:
    try:
        found = there_and_back([value]).late
    except AggregationError as error:
        assert "deep" in error.public_message  # noqa: PT017
        return
    assert same([value], found)


@pytest.mark.parametrize(
    "value",
    [
        *(True, 1, 1.0, np.True_, np.int64(1), np.float64(1.0), np.float32(1.0), "1", b"1"),
        *(-0.0, math.inf, -math.inf, np.float16(-0.0), complex(-0.0, math.nan), 2**200, -(2**63)),
        struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0],  # a negative NaN with a payload
        np.frombuffer(bytes.fromhex("0100807f"), dtype="<f4")[0],  # a signalling one
        np.frombuffer(bytes.fromhex("0100807f000000800100c0ff"), dtype="<f4").copy(),
        *([], (), {}, "", b"", np.zeros((0, 3), dtype=">f4"), [[], ({},)], np.str_("")),
        {1: "int", "1": "text", None: 0, (2, "x"): 1, np.int64(7): 2, 1.5: 3, b"k": 4},
        {"z": 1, "a": 2},
        "\N{GRINNING FACE}\0",
    ],
    ids=repr,
)
def test_what_is_easily_confused_stays_apart(value: Any) -> None:
    assert same([value], there_and_back([value]).late)


def test_sums_over_a_restored_array_have_the_same_bits() -> None:
    """NumPy adds in the order of memory: an array that came back in C order would sum otherwise."""
    array = np.asfortranarray(np.random.default_rng(1).standard_normal((37, 41)).astype("f4"))
    assert array.sum() != np.ascontiguousarray(array).sum()
    assert there_and_back(array).late.sum() == array.sum()


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
    found = there_and_back({7: [record]}).late[7][0]
    assert type(found) is RecordDict
    assert found == record
    assert [type(part) for part in found.values()] == [ArrayRecord, MetricRecord, ConfigRecord]
    assert found["a"]["w"] is found["a"]["v"]
    assert found["a"]["w"].shape == (2, 3)
    assert np.array_equal(found["a"]["w"].numpy(), array.numpy())
    assert type(found["c"]["y"]) is bool


def test_what_is_shared_stays_shared() -> None:
    array, inner, record = np.arange(3.0), [1], ConfigRecord({"x": 1})
    found = there_and_back(
        {"one": array, "two": [array], "lists": (inner, {"x": inner}), "r": [record, record]},
        make=lambda _: None,
    ).late
    found["one"] += 1.0
    assert found["two"][0] is found["one"]
    assert found["lists"][0] is found["lists"][1]["x"]
    assert found["r"][0] is found["r"][1]


def test_an_array_under_two_attributes_is_one_array(tmp_path: Path) -> None:
    def twice(holder: Holder) -> Any:
        holder.other = np.zeros(2)  # type: ignore[attr-defined]
        return holder.other  # type: ignore[attr-defined]

    holder, fresh = Holder(twice), Holder(twice)
    memory, restored = watched(holder), watched(fresh)
    holder.held += 5.0
    restored.restore(saved(memory, tmp_path))
    found: Any = fresh
    found.held += 1.0
    assert found.other is found.held
    assert found.other.tolist() == [6.0, 6.0]


def test_equal_memories_give_equal_files(tmp_path: Path) -> None:
    """Also if one process met equal texts, bytes and tuples as one object and the other did not."""
    one, two = Holder(), Holder()
    memories = watched(one), watched(two)
    data, pair = bytes(range(9)), (1, (2.0, "x"))
    one.late = [data, data, pair, pair, 10**30]
    two.late = [data, bytes(bytearray(data)), pair, (1, (2.0, "x")), 10**30]
    two.b, two.a = 1, 2  # type: ignore[attr-defined]
    one.a, one.b = 2, 1  # type: ignore[attr-defined]
    assert saved(memories[0], tmp_path) == saved(memories[1], tmp_path)


class Slotted(strategy.FedAvg):
    __slots__ = ("__own", "unset")

    def __init__(self) -> None:
        super().__init__()
        self.__own = [1]
        self.gone = 1

    def add(self) -> list[int]:
        self.__own.append(len(self.__own))
        return self.__own


def test_slots_are_remembered_and_deleted_attributes_stay_deleted(tmp_path: Path) -> None:
    holder, fresh = Slotted(), Slotted()
    memory, restored = watched(holder), watched(fresh)
    holder.add()
    del holder.gone
    restored.restore(saved(memory, tmp_path))
    assert fresh.add() == [1, 1, 2]
    assert not hasattr(fresh, "gone")
    assert not hasattr(fresh, "unset")


# ---- code and constants ------------------------------------------------------------------------


class Phase(enum.Enum):
    WARM = 1
    MAIN = "two"


def test_code_and_constants_are_those_of_construction() -> None:
    def make(holder: Holder) -> dict[str, Any]:
        return {
            "function": np.mean,
            "over the strategy": lambda: holder.late,
            "method": holder.half,
            "class": Phase,
            "rules": [math.sqrt, math.exp],
            "chosen": Phase.WARM,
            "other": Phase.MAIN,
            "log": logging.getLogger("x"),
            "dtype": np.dtype("f4"),
            "path": Path("x"),
        }

    found = there_and_back(3, make)
    assert found.held["over the strategy"]() == 3
    assert found.held["method"].__self__ is found
    assert found.held["rules"] == [math.sqrt, math.exp]
    assert found.held["chosen"] is Phase.WARM


def test_code_of_construction_may_change_places(tmp_path: Path) -> None:
    def make(_: Holder) -> list[Any]:
        return [math.sqrt, math.exp]

    holder, fresh = Holder(make), Holder(make)
    memory, restored = watched(holder), watched(fresh)
    holder.late = holder.held[1]
    restored.restore(saved(memory, tmp_path))
    assert fresh.late is math.exp


def _counted() -> None:
    pass


_counted.calls = [1]  # type: ignore[attr-defined]


def _closed_over(value: Any) -> Callable[[], Any]:
    return lambda: value


def _by_default(found: Any = []) -> Any:  # noqa: B006
    return found


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (_closed_over([1]), "list"),
        (_closed_over(np.random.default_rng(1)), "Generator"),
        (_closed_over((1, _closed_over({}))), "dict"),
        (_by_default, "list"),
        (_counted, "list"),
        ([].append, "list"),
        (Holder().half, "Holder"),
    ],
)
def test_code_that_keeps_data_of_its_own_is_refused(code: Any, kind: str) -> None:
    with pytest.raises(
        UsageError, match=rf"Holder: strategy\.held is a function .* data of its own \(a {kind},"
    ):
        watched(Holder(lambda _: code))


# ---- what is refused ---------------------------------------------------------------------------


@dataclass
class Seen:
    rounds: int = 0


def _loop() -> list[Any]:
    found: list[Any] = [1]
    found.append({"x": (found,)})
    return found


def _deep(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


class Named(str):
    __slots__ = ()


REFUSED: list[tuple[Any, str]] = [
    (itertools.count(), r"strategy\.late\['x'\]\[1\] holds a itertools\.count, which cannot"),
    ((i for i in range(3)), "builtins.generator"),
    (Seen(), "Seen"),
    (object(), "builtins.object"),
    (threading.Lock(), "lock"),
    ({1, 2}, "builtins.set"),
    (frozenset({1}), "builtins.frozenset"),
    (collections.deque([1]), "collections.deque"),
    (collections.OrderedDict(a=1), "collections.OrderedDict"),
    (collections.defaultdict(int), "collections.defaultdict"),
    (bytearray(b"x"), "bytearray"),
    (memoryview(b"x"), "memoryview"),
    (Named("x"), "Named"),
    (range(3), "range"),
    (np.random.default_rng(1), "Generator"),
    (random.Random(1), "random.Random"),
    (np.array([{}], dtype=object), "dtype object"),
    (np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]), "which is not one number or text each"),
    (np.zeros(1, dtype=[("a", "f4")])[0], "numpy.void"),
    (np.ma.masked_array([1, 2]), "MaskedArray"),
    ({(1, Seen): 1}, r"a key of .* holds a builtins\.type, which was put there after construction"),
    (
        {("k", (i for i in "x")): 1},
        r"a key of strategy\.late\['x'\]\[1\]\[1\] holds a builtins.gen",
    ),
    (math.sin, "after construction"),
    (Phase.MAIN, "after construction"),
    (_loop(), "builtins.list, which holds itself"),
    (_deep(MAX_DEPTH), f"nested more than {MAX_DEPTH} deep"),
    (_deep(5000), f"nested more than {MAX_DEPTH} deep"),
    pytest.param(10**5000, "more than 8192 bits", id="a very long number"),
    ("\ud83d\ude00", "surrogate"),
    (ValueError("x"), "ValueError"),
    (np.str_("a\0"), "numpy.str_"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED)
def test_the_rest_is_refused_by_name_at_the_round_it_appears(
    tmp_path: Path, value: Any, words: str
) -> None:
    holder = Holder()
    memory = watched(holder)
    holder.late = {"x": [0, value]}
    with pytest.raises(AggregationError, match=words) as caught:
        memory.save(tmp_path)
    assert "Holder: " in caught.value.public_message
    assert "state_dict() and load_state_dict(state)" in caught.value.public_message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [itertools.count, Seen, set, threading.Lock, lambda: {1: [open]}])
def test_the_rest_is_refused_before_the_first_round(make: Callable[[], Any]) -> None:
    if isinstance(make(), dict):
        watched(Holder(lambda _: make()))  # code that construction put there
        return
    with pytest.raises(UsageError, match=r"Holder: strategy\.held holds a .*state_dict\(\) and"):
        watched(Holder(lambda _: make()))


def test_depth_is_counted_below_the_attribute() -> None:
    assert there_and_back(_deep(MAX_DEPTH)).late == _deep(MAX_DEPTH)


def test_arrays_that_overlap_are_refused_by_both_names(tmp_path: Path) -> None:
    whole = np.arange(12.0).reshape(3, 4)
    for part in (whole[1], whole.T, whole[:, ::-2], whole.reshape(-1), whole[2:, 3:]):
        holder = Holder()
        memory = watched(holder)
        holder.late = {"whole": whole, "part": part}
        with pytest.raises(AggregationError, match="shares memory with") as caught:
            memory.save(tmp_path)
        assert "strategy.late['whole']" in caught.value.public_message
        assert "strategy.late['part']" in caught.value.public_message


def test_views_of_one_array_that_do_not_overlap_are_fine() -> None:
    parts = np.split(np.arange(12.0), 3)
    assert same(parts, there_and_back(parts).late)


class Shared(strategy.FedAvg):
    history: ClassVar[dict[str, Any]] = {"norms": [np.zeros(2)]}
    count: ClassVar[int] = 0
    handlers: ClassVar[list[Any]] = [print]


@pytest.mark.parametrize("deed", ["array", "list", "count"])
def test_memory_in_a_class_is_refused(
    tmp_path: Path, deed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shared, "history", {"norms": [np.zeros(2)]})
    monkeypatch.setattr(Shared, "count", 0)
    holder = Shared()
    memory = watched(holder)
    assert memory.save(tmp_path) is None
    if deed == "array":
        holder.history["norms"][0][1] = -0.0
    elif deed == "list":
        holder.history["norms"].append(Seen())
    else:
        type(holder).count += 1
    with pytest.raises(AggregationError, match=r"the class attribute Shared\.\w+ changed"):
        memory.save(tmp_path)


class SharedByAll(strategy.FedAvg):
    seen: ClassVar[set[int]] = set()
    last: ClassVar[collections.deque[int]] = collections.deque()
    times: ClassVar[collections.Counter[str]] = collections.Counter()
    warm = False
    best: str | None = None
    pair: ClassVar[tuple[int, list[int]]] = (1, [])

    def by_default(self, cache: list[int] = []) -> None:  # noqa: B006
        cache.append(1)

    def counted(self) -> None: ...


DEEDS: dict[str, Callable[[Any], object]] = {
    "seen": lambda cls: cls.seen.add(1),
    "last": lambda cls: cls.last.append(1),
    "times": lambda cls: cls.times.update("a"),
    "warm": lambda cls: setattr(cls, "warm", True),
    "best": lambda cls: setattr(cls, "best", "lumi"),
    "pair": lambda cls: cls.pair[1].append(1),
    "by_default": lambda cls: cls.by_default(None),
    "counted": lambda cls: setattr(cls.counted, "calls", 1),
}


@pytest.mark.parametrize("name", DEEDS)
def test_whatever_a_class_remembers_is_refused(tmp_path: Path, name: str) -> None:
    own = {key: copy.deepcopy(found) for key, found in vars(SharedByAll).items() if key in DEEDS}
    fresh = type("Fresh", (strategy.FedAvg,), own)
    holder = fresh()
    memory = watched(holder)
    assert memory.save(tmp_path) is None
    DEEDS[name](fresh)
    with pytest.raises(AggregationError, match=rf"the class attribute Fresh\.{name} changed"):
        memory.save(tmp_path)


def test_a_function_that_counts_is_refused_once_it_has(tmp_path: Path) -> None:
    class Counting(strategy.FedAvg):
        def __init__(self) -> None:
            count = 0

            def step() -> int:
                nonlocal count
                count += 1
                return count

            self.step = step

    holder = Counting()
    memory = watched(holder)
    assert memory.save(tmp_path) is None
    holder.step()
    with pytest.raises(AggregationError, match=r"step holds a .*function, which remembers"):
        memory.save(tmp_path)


def test_a_strategy_that_is_a_container_is_refused() -> None:
    class Items(strategy.FedAvg, dict[str, int]): ...

    with pytest.raises(UsageError, match="Items is itself a container"):
        watched(Items())


# ---- state_dict --------------------------------------------------------------------------------


class Telling(Holder):
    def __init__(self, state: Any = None) -> None:
        super().__init__()
        self.steps = itertools.count()
        self.state = state

    def state_dict(self) -> Any:
        if isinstance(self.state, Exception):
            raise self.state
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = {"loaded": state["n"]}


def test_a_state_dict_takes_the_place_of_the_attributes(tmp_path: Path) -> None:
    holder, fresh = Telling(), Telling()
    memory, restored = watched(holder), watched(fresh)
    assert memory.save(tmp_path) is None
    generator = np.random.default_rng(3)
    holder.state = {"n": [np.float32(1.5)], "draws": generator.bit_generator.state}
    path = saved(memory, tmp_path)
    restored.restore(path)
    assert fresh.state == {"loaded": [np.float32(1.5)]}


def test_what_is_wrong_with_a_state_dict_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Telling: state_dict: RuntimeError: no state"):
        watched(Telling(RuntimeError("no state")))
    holder = Telling({"n": 1})
    memory = watched(holder)
    holder.state = {"n": {Seen: 1}}
    with pytest.raises(AggregationError, match=r"Telling: a key of state_dict\(\)\['n'\] holds a"):
        memory.save(tmp_path)
    holder.state = KeyError("later")
    with pytest.raises(AggregationError, match="Telling: state_dict: KeyError"):
        memory.save(tmp_path)
    holder.state = {"other": 1}
    path = saved(memory, tmp_path)
    with pytest.raises(IntegrityError, match="not the memory of such a Telling") as caught:
        watched(Telling()).restore(path)
    assert "KeyError: 'n'" in str(caught.value.diagnostic)


def test_one_of_the_two_methods_alone_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Telling, "load_state_dict")
    with pytest.raises(UsageError, match=r"has state_dict\(\) without load_state_dict\(\)"):
        watched(Telling())


# ---- the file ----------------------------------------------------------------------------------


def test_saving_copies_no_array_and_restoring_each_once(tmp_path: Path) -> None:
    arrays = {str(i): np.full((500, 1000), i, dtype=np.float32, order="F") for i in range(20)}
    whole = sum(array.nbytes for array in arrays.values())
    holder, fresh = Holder(), Holder()
    memory, restored = watched(holder), watched(fresh)
    holder.late = [arrays, ArrayRecord({"x": Array(arrays["1"])})]
    tracemalloc.start()
    try:
        path = saved(memory, tmp_path)
        saving = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        restored.restore(path)
        restoring = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert saving < 0.15 * whole
    assert restoring < 1.3 * whole


def test_nothing_is_left_of_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Holder()
    memory = watched(holder)
    holder.late = np.zeros(4)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedfactory.wire.arrays.ArrayWriter.write", full)
    with pytest.raises(OSError, match="No space"):
        memory.save(tmp_path)
    assert not list(tmp_path.iterdir())


def written(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    ref = write_arrays(folder / "made", arrays)
    return (folder / "made").rename(folder / ref.digest.removeprefix("sha256:"))


def memory_file(folder: Path, found: Any) -> Path:
    text = np.frombuffer(json.dumps(found).encode(), dtype=np.uint8)
    arrays = {f"array-{number:08}": np.arange(8, dtype=np.uint8) for number in range(3)}
    return written(folder, {"memory": text, **arrays})


def test_the_form_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    raw = np.zeros(1, dtype=np.uint8)
    for path, form in (
        (written(tmp_path, {"graph": raw}), "form 1"),
        (memory_file(tmp_path, {"version": 3}), "form 3"),
    ):
        with pytest.raises(IntegrityError, match=rf"memory in {form}.*reads form 2.*model=FILE"):
            watched(Holder()).restore(path)


pieces = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=8) | st.sampled_from(
        ["node", "code", "scalar", "float", "complex", "list", "tuple", "dict", "ndarray", "bytes",
         "ArrayRecord", "RecordDict", "Array", "<f8", "|O", "<U1", "strategy.train_metrics_aggr_fn", "00" * 8]
    ),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
node_kinds = ["list", "tuple", "dict", "ndarray", "bytes", "Array", "ArrayRecord", "RecordDict"]
nodes = st.tuples(st.sampled_from(node_kinds), st.lists(pieces, max_size=5))


@settings(deadline=None, max_examples=300)
@given(root=pieces, nodes=st.lists(nodes.map(lambda n: [n[0], *n[1]]) | pieces, max_size=3))
def test_a_file_of_another_form_is_an_integrity_error_and_changes_nothing(
    root: Any, nodes: list[Any]
) -> None:
    holder = Holder()
    about = {"version": 2, "class": f"{__name__}:Holder"}
    bad = {**about, "nodes": nodes, "root": {"strategy.held": root, "strategy.late": ["os.system"]}}
    with tempfile.TemporaryDirectory() as name:
        for found in (bad, {**bad, "class": "os:system"}, {**bad, "root": [root]}, root, nodes):
            path = memory_file(Path(name), found)
            with pytest.raises(IntegrityError, match="not the memory of such a Holder"):
                watched(holder).restore(path)
    assert (holder.held, holder.late) == (None, None)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    holder = Holder()
    memory = watched(holder)
    holder.late = 1
    path = saved(memory, tmp_path)
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole[:-1] + b"x", bytes(len(whole))):
        path.write_bytes(broken)
        with pytest.raises(IntegrityError, match="not what was written"):
            watched(Holder()).restore(path)
