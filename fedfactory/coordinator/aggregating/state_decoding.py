"""From plain data back to a strategy's memory, on a strategy made anew. No IO.

What construction had made is filled in place, so that functions which hold on to it see it too. The
data name no code: dataclasses are looked up among what is imported already, and nothing is
called by name but what is written here.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedfactory.coordinator.aggregating.state_generators import NEW, SET_STATE, demand
from fedfactory.coordinator.aggregating.state_kinds import (
    SCALARS,
    Origin,
    class_named,
    factory_named,
    name_of,
    set_attributes,
)

Bytes = NDArray[np.uint8]

_EMPTY: Final[dict[str, Callable[[], Any]]] = {
    **{cls.__name__: cls for cls in (list, set, dict, OrderedDict, Counter)},
    **{cls.__name__: cls for cls in (ArrayRecord, ConfigRecord, MetricRecord, RecordDict)},
}


def decode(text: str, read: Callable[[int], Bytes], origin: Origin) -> dict[str, Any]:
    """Return what `encode` was given, on a strategy made anew; `read` gives an array by number.

    Raises:
        KeyError, TypeError, ValueError, IndexError, AttributeError: the graph is not of this form,
            or of another strategy.
    """
    graph = json.loads(text)
    decoder = _Decoder(graph["nodes"], read, origin)
    return {name: decoder.value(value) for name, value in graph["root"].items()}


class _Decoder:
    def __init__(
        self, nodes: list[dict[str, Any]], read: Callable[[int], Bytes], origin: Origin
    ) -> None:
        self._nodes = nodes
        self._read = read
        self._origin = origin
        self._made: dict[int, Any] = {}
        self._memories: dict[int, Bytes] = {}

    def value(self, found: Any) -> Any:
        """Return the value of a piece of JSON."""
        if not isinstance(found, list):
            demand(type(found) in SCALARS, "an object where a value is expected")
            return found
        kind, *rest = found
        match kind:
            case "float":
                return float(rest[0])
            case "tuple" | "frozenset":
                items = [self.value(item) for item in rest[0]]
                return tuple(items) if kind == "tuple" else frozenset(items)
            case "scalar":
                scalar = np.zeros(1, dtype=np.dtype(rest[0]))
                scalar.view(np.uint8)[:] = np.frombuffer(bytes.fromhex(rest[1]), dtype=np.uint8)
                return scalar[0]
            case "enum":
                cls: Any = class_named(rest[0])
                demand(issubclass(cls, enum.Enum), f"{rest[0]} is no enumeration")
                return cls[rest[1]]
            case "ref":
                if rest[0] not in self._made:
                    self._make(rest[0])
                return self._made[rest[0]]
        raise ValueError(f"unknown kind '{kind}'")

    def _make(self, number: int) -> None:
        demand(number >= 0, "a negative node")
        node = self._nodes[number]
        self._made[number] = made = self._empty(node)
        match node["kind"]:
            case "list":
                made[:] = [self.value(item) for item in node["items"]]
            case "set" | "deque":
                made.clear()
                items = [self.value(item) for item in node["items"]]
                made.update(items) if node["kind"] == "set" else made.extend(items)
            case "object":
                set_attributes(made, {name: self.value(item) for name, item in node["items"]})
            case "Generator" | "RandomState" | "Random":
                SET_STATE[node["kind"]](made, self.value(node["state"]))
            case "opaque" | "bytes" | "ndarray" | "Array":
                pass
            case _:
                for key in list(made):
                    del made[key]
                for key, item in node["items"]:
                    made[self.value(key)] = self.value(item)

    def _empty(self, node: dict[str, Any]) -> Any:
        """Return what a node is filled into: of construction, or new."""
        kind = node["kind"]
        if "at" in node:
            found = self._origin.at(node["at"])
            named = name_of(type(found)) if kind == "object" else type(found).__name__
            demand(
                kind == "opaque" or named == node.get("class", kind), f"{node['at']} is a {named}"
            )
            return found
        return _EMPTY[kind]() if kind in _EMPTY else self._new(node)

    def _new(self, node: dict[str, Any]) -> Any:
        match node["kind"]:
            case "object":
                cls = class_named(node["class"])
                demand(dataclasses.is_dataclass(cls), f"{node['class']} is no dataclass")
                assert cls is not None
                made: Any = object.__new__(cls)
            case "bytes":
                made = self._read(node["array"]).tobytes()
            case "ndarray":
                made = self._array(node)
            case "Array":
                dtype, shape, stype = node["form"]
                made = Array(dtype, tuple(shape), stype, self.value(node["data"]))
            case "deque":
                made = deque(maxlen=node["maxlen"])
            case "defaultdict":
                made = defaultdict(factory_named(node["factory"]))
            case kind:
                made = NEW[kind](self.value(node["state"]))
        return made

    def _array(self, node: dict[str, Any]) -> NDArray[Any]:
        number = node["array"]
        if number not in self._memories:
            self._memories[number] = self._read(number)
        dtype, shape, strides = node["form"]
        return np.ndarray(
            shape=tuple(shape),
            dtype=np.dtype(dtype),
            buffer=self._memories[number],
            offset=node["offset"],
            strides=tuple(strides),
        )
