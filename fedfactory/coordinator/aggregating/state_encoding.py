"""A strategy's memory as plain data: a graph in JSON, and raw arrays beside it. No IO.

Every mutable value is one node, so what two attributes share stays shared. "at" says where
construction had put the very same object; state_decoding.py fills it in place.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from flwr.app import Array
from numpy.typing import NDArray

from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.state_generators import STATES
from fedfactory.coordinator.aggregating.state_kinds import (
    SAVED,
    SCALARS,
    UNSEEN,
    Origin,
    attributes,
    class_named,
    is_opaque,
    is_plain,
    name_of,
    unsavable,
)

Bytes = NDArray[np.uint8]

_LATE: Final = "which was put there after construction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """`text` is canonical JSON; it refers to `arrays` (flat, uint8) by their number."""

    text: str
    arrays: tuple[Bytes, ...]


def encode(root: dict[str, Any], origin: Origin) -> Graph:
    """Return the graph of what `root` holds; `arrays` are views of live memory.

    Raises:
        AggregationError: something in it cannot be saved.
    """
    encoder = _Encoder(origin)
    try:
        found = {name: encoder.value(value, name) for name, value in root.items()}
        encoder.place_arrays()
        text = json.dumps(
            {"root": found, "nodes": encoder.nodes}, separators=(",", ":"), allow_nan=False
        )
    except RecursionError as error:
        raise AggregationError("the strategy's memory is nested too deeply to be saved") from error
    except ValueError as error:  # a whole number of more digits than Python writes
        raise AggregationError(f"the strategy's memory cannot be saved: {error}") from error
    return Graph(text=text, arrays=tuple(encoder.arrays))


class _Encoder:
    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self.nodes: list[dict[str, Any]] = []
        self.arrays: list[Bytes] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []  # while we look at identities nothing may be freed
        self._open: set[int] = set()
        self._ndarrays: list[tuple[dict[str, Any], NDArray[Any]]] = []

    def value(self, value: Any, where: str) -> Any:
        """Return the JSON of a value: itself, a small list that begins with its kind, or a ref."""
        kind = type(value)
        if kind in SCALARS:
            if kind is float and not math.isfinite(value):
                return ["float", str(value)]
            return value
        if kind in (tuple, frozenset):
            return self._constant(kind.__name__, value, where)
        if isinstance(value, np.generic) and value.dtype.names is None:
            return ["scalar", value.dtype.str, value.tobytes().hex()]
        if isinstance(value, enum.Enum) and class_named(name_of(kind)) is kind and value.name:
            return ["enum", name_of(kind), value.name]
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.nodes)
            self._kept.append(value)
            node: dict[str, Any] = {}
            self.nodes.append(node)
            self._fill(node, value, where)
        return ["ref", self._numbers[id(value)]]

    def _constant(self, kind: str, value: Any, where: str) -> Any:
        if id(value) in self._open:
            raise unsavable(where, value, "which holds itself")
        self._open.add(id(value))
        items = [self.value(item, f"{where}[{i}]") for i, item in enumerate(value)]
        self._open.remove(id(value))
        return [kind, items if kind == "tuple" else sorted(items, key=json.dumps)]

    def _fill(self, node: dict[str, Any], value: Any, where: str) -> None:
        node["kind"] = type(value).__name__
        at = self._origin.where(value)
        if at is not None:
            node["at"] = at
        if type(value) in STATES:
            node["state"] = self.value(STATES[type(value)](value), where)
        elif type(value) in (bytes, Array, np.ndarray):
            self._fill_array(node, value, where)
        elif type(value) in SAVED:
            self._fill_container(node, value, where)
        else:
            self._fill_object(node, value, where)

    def _fill_array(self, node: dict[str, Any], value: Any, where: str) -> None:
        if isinstance(value, bytes):
            node["array"] = self._add(np.frombuffer(value, dtype=np.uint8))
        elif isinstance(value, Array):
            node["form"] = [value.dtype, list(value.shape), str(value.stype)]
            node["data"] = self.value(value.data, f"{where}.data")
        elif value.dtype.hasobject or value.dtype.names:
            raise unsavable(where, value, f"of dtype {value.dtype}, which is not one number each")
        else:
            self._ndarrays.append((node, value))

    def _fill_container(self, node: dict[str, Any], value: Any, where: str) -> None:
        if isinstance(value, set):
            node["items"] = sorted((self._key(item, where) for item in value), key=json.dumps)
        elif isinstance(value, list | deque):
            node["items"] = [self.value(item, f"{where}[{i}]") for i, item in enumerate(value)]
        else:
            node["items"] = [
                [self._key(key, where), self.value(item, f"{where}[{key!r}]")]
                for key, item in value.items()
            ]
        if isinstance(value, deque):
            node["maxlen"] = value.maxlen
        if isinstance(value, defaultdict) and "at" not in node:
            node["factory"] = self._factory(value, where)

    def _fill_object(self, node: dict[str, Any], value: Any, where: str) -> None:
        late = "at" not in node
        if is_plain(value):
            node["kind"], node["class"] = "object", name_of(type(value))
            known = dataclasses.is_dataclass(value) and class_named(node["class"]) is type(value)
            if late and not known:
                raise unsavable(where, value, _LATE)
            node["items"] = [
                [name, self.value(item, f"{where}.{name}")]
                for name, item in sorted(attributes(value).items())
            ]
        elif not is_opaque(value):
            raise unsavable(where, value, UNSEEN)
        elif late:
            raise unsavable(where, value, _LATE)
        else:
            node["kind"] = "opaque"

    def _key(self, key: Any, where: str) -> Any:
        found = self.value(key, f"a key of {where}")
        if isinstance(found, list) and found[0] == "ref" and type(key) is not bytes:
            raise unsavable(f"a key of {where}", key, "which is no plain value")
        return found

    def _factory(self, value: defaultdict[Any, Any], where: str) -> str | None:
        factory: Any = value.default_factory
        if factory is None:
            return None
        if not (isinstance(factory, type) and factory.__module__ == "builtins"):
            raise unsavable(where, value, f"{_LATE} with a factory of its own")
        return factory.__name__

    def _add(self, array: Bytes) -> int:
        self.arrays.append(array)
        return len(self.arrays) - 1

    def place_arrays(self) -> None:
        """Give every NumPy array its bytes; those that share memory share it in the file."""
        owners = [_owner(array) for _, array in self._ndarrays]
        sharing = Counter(id(owner) for owner in owners)
        places: dict[int, int] = {}
        for (node, array), owner in zip(self._ndarrays, owners, strict=True):
            alone = array.flags.forc and sharing[id(owner)] == 1
            memory = _memory(array if alone else owner)
            if id(owner) not in places:
                places[id(owner)] = self._add(memory)
            node["array"] = places[id(owner)]
            node["form"] = [array.dtype.str, list(array.shape), list(array.strides)]
            node["offset"] = _address(array) - _address(memory) if array.size else 0


def _owner(array: NDArray[Any]) -> NDArray[Any]:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _memory(array: NDArray[Any]) -> Bytes:
    """Return an array's memory as it lies, flat; a view."""
    if not array.size:
        return np.empty(0, dtype=np.uint8)
    flat = array.ravel(order="K")
    assert np.shares_memory(flat, array), "an owner of memory is one piece"
    return flat.view(np.uint8)


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
