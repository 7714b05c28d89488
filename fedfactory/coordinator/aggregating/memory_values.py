"""What a strategy may remember, as plain data: JSON, and arrays beside it. No IO.

Scalars stand in the JSON. Everything else is a node, written after the nodes that it holds, so
reading is one pass. A mutable value is one node however often it is met: what two attributes share
stays shared. Immutable ones are merged by value, so that equal memories give equal data.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.strategy_code import CODE, kept_by, kept_scalars

Bytes = NDArray[np.uint8]

MAX_DEPTH: Final = 8
_MAX_BITS: Final = 8192  # Python reads and writes whole numbers of at most 4300 digits
_SCALARS: Final = (type(None), bool, int, float, complex, str)
_DTYPE_KINDS: Final = "biufcmMSU"
_HALF_A_PAIR: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of composite value: taken apart by `parts`, put together by `make`.

    `keyed`: the parts are a key, its item, the next key, and so on.
    """

    cls: type
    parts: Callable[[Any], list[Any]]
    make: Callable[[list[Any]], Any]
    keyed: bool = False


def mapping(cls: Any) -> Kind:
    """Return the kind of a class of mappings; their order is kept."""

    def make(parts: list[Any]) -> Any:
        made = cls()
        for key, item in zip(parts[::2], parts[1::2], strict=True):
            made[key] = item
        return made

    def parts(found: Any) -> list[Any]:
        return [part for pair in found.items() for part in pair]

    return Kind(cls=cls, parts=parts, make=make, keyed=True)


CONTAINERS: Final = (
    Kind(cls=list, parts=list, make=list),
    Kind(cls=tuple, parts=list, make=tuple),
    mapping(dict),
)


@dataclass(slots=True, kw_only=True)
class Values:
    """Takes in the values of one memory.

    `code` names the code and constants that construction put into the strategy, `scalars` what they
    kept of text and numbers then; with `is_new`, construction is just over, and both are collected.
    `arrays` are bytes by the number of
    their node: views of live memory, except of an array with gaps.
    """

    kinds: Iterable[Kind]
    code: dict[str, object]
    scalars: dict[str, str]
    strategy: object
    is_new: bool
    nodes: list[list[Any]] = field(default_factory=list)
    arrays: dict[int, Bytes] = field(default_factory=dict)
    _numbers: dict[Any, int] = field(default_factory=dict)  # by id, or by an immutable's value
    _spans: list[tuple[int, int, str]] = field(default_factory=list)  # memory of arrays, and where
    _name: str = ""
    _inside: list[tuple[Any, Kind, list[Any], int]] = field(default_factory=list)

    def add(self, name: str, value: Any) -> Any:
        """Return the JSON that stands for a value: a scalar itself, else a list by its kind.

        Raises:
            AggregationError: it, or what it holds, cannot be saved.
        """
        self._name = name
        return self._add(value)

    def check_memory(self) -> None:
        """Refuse arrays that overlap: after a resume, each would have memory of its own.

        Raises:
            AggregationError: two overlap without being one and the same array.
        """
        end, last = -1, ""
        for start, stop, where in sorted(self._spans):
            if start < end:
                raise AggregationError(
                    f"{where} holds an array that shares memory with {last}, so the run could not"
                    " be resumed; keep a copy() there, or make the view anew when it is needed"
                )
            end, last = max((end, last), (stop, where))

    def _add(self, value: Any) -> Any:
        if type(value) in _SCALARS:
            return self._scalar(value)
        if isinstance(value, np.generic):
            return self._numpy_scalar(value)
        if isinstance(value, CODE):
            return ["code", self._code(value)]
        key: Any = value if type(value) is bytes else id(value)
        if key not in self._numbers:
            node = self._node(value)
            if type(value) is tuple:
                key = json.dumps(node)
            if self._numbers.setdefault(key, len(self.nodes)) == len(self.nodes):
                self.nodes.append(node)
        return ["node", self._numbers[key]]

    def _node(self, value: Any) -> list[Any]:
        if type(value) is bytes:
            self.arrays[len(self.nodes)] = np.frombuffer(value, dtype=np.uint8)
            return ["bytes"]
        if type(value) is np.ndarray:
            return self._array(value)
        kind = next((kind for kind in self.kinds if type(value) is kind.cls), None)
        if kind is None:
            raise self._unsavable(value)
        if any(owner is value for owner, *_ in self._inside):
            raise self._unsavable(value, "which holds itself")
        if len(self._inside) == MAX_DEPTH:
            raise self._unsavable(value, f"nested more than {MAX_DEPTH} deep")
        node = [kind.cls.__name__]
        parts = kind.parts(value)
        for number, part in enumerate(parts):
            self._inside.append((value, kind, parts, number))
            node.append(self._add(part))
            self._inside.pop()
        return node

    def _array(self, value: NDArray[Any]) -> list[Any]:
        dtype = value.dtype
        if dtype.kind not in _DTYPE_KINDS or np.dtype(dtype.str) != dtype:
            raise self._unsavable(value, f"of dtype {dtype}, which is not one number or text each")
        if value.size:
            self._spans.append((*np.lib.array_utils.byte_bounds(value), self._where()))
        strides = value.strides if value.size else (0,) * value.ndim
        whole = np.ascontiguousarray(value.transpose(_by_stride(strides)))
        self.arrays[len(self.nodes)] = whole.reshape(-1).view(np.uint8)
        return ["ndarray", dtype.str, list(value.shape), list(strides), value.flags.writeable]

    def _code(self, value: object) -> str:
        if (kept := kept_by(value, self.strategy)) is not None:
            raise self._keeps_data(kept)
        for name, known in self.code.items():
            if known is value:
                if self.scalars.get(name, "") != kept_scalars(value):
                    raise self._unsavable(value, "which remembers a number or text that changed")
                return name
        if not self.is_new:
            raise self._unsavable(value, "which was put there after construction")
        self.code[self._where()] = value
        self.scalars[self._where()] = kept_scalars(value)
        return self._where()

    def _scalar(self, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return ["float", struct.pack("<d", value).hex()]  # with the bits of a NaN
        if isinstance(value, complex):
            return ["complex", struct.pack("<2d", value.real, value.imag).hex()]
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise self._unsavable(value, f"of more than {_MAX_BITS} bits")
        if isinstance(value, str) and _HALF_A_PAIR.search(value):
            raise self._unsavable(value, "with half a surrogate pair")
        return value

    def _numpy_scalar(self, value: np.generic) -> Any:
        array = np.asarray(value)
        again: Any = array[()]
        whole = type(value) is type(again) and value.tobytes() == again.tobytes()
        if array.dtype.kind not in _DTYPE_KINDS or not whole:
            raise self._unsavable(value)
        return ["scalar", array.dtype.str, array.tobytes().hex()]

    def _where(self) -> str:
        found = self._name
        for _, kind, parts, number in self._inside:
            if not kind.keyed:
                found += f"[{number}]"
            elif number % 2:
                found += f"[{parts[number - 1]!r:.80}]"
            else:
                found = f"a key of {found}"
        return found

    def _keeps_data(self, kept: object) -> AggregationError:
        return AggregationError(
            f"{self._where()} is a function or method that keeps data of its own (a"
            f" {type(kept).__qualname__}, in a closure, a default, an attribute or its object),"
            " which cannot be saved, so the run could not be resumed; keep the data in an attribute"
            " of the strategy and let a method of it read them, or give the strategy state_dict()"
            " and load_state_dict(state) (docs/researcher.md)"
        )

    def _unsavable(self, value: object, why: str = "") -> AggregationError:
        return AggregationError(
            f"{self._where()} holds a {_type_of(value)}{why and ', '}{why}, which cannot be saved,"
            " so the run could not be resumed; keep numbers, text, bytes, NumPy arrays, Flower's"
            f" records, or lists, tuples and dicts of these, at most {MAX_DEPTH} deep, there, or"
            " give the strategy state_dict() and load_state_dict(state) (docs/researcher.md)"
        )


def _type_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _by_stride(strides: Iterable[int]) -> list[int]:
    """Return the axes from the longest stride to the shortest: how memory lies."""
    found = [-abs(stride) for stride in strides]
    return sorted(range(len(found)), key=found.__getitem__)


@dataclass(slots=True, kw_only=True)
class Reader:
    """Makes the values of one memory again; `read` gives a node's bytes as a fresh array.

    Methods raise KeyError, TypeError, ValueError, IndexError, struct.error: data of another form.
    """

    kinds: Iterable[Kind]
    code: dict[str, object]
    read: Callable[[int], Bytes]
    _made: list[Any] = field(default_factory=list)

    def add_nodes(self, nodes: Iterable[list[Any]]) -> None:
        """Make the nodes, each of those before it."""
        make = {kind.cls.__name__: kind.make for kind in self.kinds}
        for number, (name, *rest) in enumerate(nodes):
            if name == "bytes":
                made: Any = self.read(number).tobytes()
            elif name == "ndarray":
                made = _laid(self.read(number), *rest)
            else:
                made = make[name]([self.value(part) for part in rest])
            self._made.append(made)

    def value(self, found: Any) -> Any:
        """Return the value that a piece of JSON stands for."""
        match found:
            case None | bool() | int() | float() | str():
                return found
            case ["node", int(number)] if number >= 0:
                return self._made[number]
            case ["code", str(name)]:
                return self.code[name]
            case ["scalar", str(dtype), str(data)]:
                return np.ndarray((), _dtype(dtype), bytes.fromhex(data))[()]
            case ["float", str(data)]:
                return struct.unpack("<d", bytes.fromhex(data))[0]
            case ["complex", str(data)]:
                return complex(*struct.unpack("<2d", bytes.fromhex(data)))
        raise ValueError(f"no value: {found!s:.80}")


def _dtype(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in _DTYPE_KINDS:
        raise ValueError(f"dtype {name}")
    return dtype


def _laid(
    raw: Bytes, dtype: str, shape: list[int], strides: list[int], writeable: bool
) -> NDArray[Any]:
    """Return an array whose memory lies as that of the one that was saved.

    NumPy's sums depend on how memory lies, in their last bits.
    """
    axes = _by_stride(strides)
    values: NDArray[Any] = np.ndarray([shape[axis] for axis in axes], _dtype(dtype), raw)
    if values.nbytes != raw.nbytes:
        raise ValueError(f"{raw.nbytes} bytes for {dtype} of shape {shape}")
    made = values.transpose(np.argsort(axes))
    if made.size and made.strides != tuple(strides):  # a view with gaps, or turned round
        reach = [stride * (count - 1) for stride, count in zip(strides, shape, strict=True)]
        first = -sum(min(0, to) for to in reach)
        whole = np.zeros(first + sum(max(0, to) for to in reach) + made.itemsize, dtype=np.uint8)
        spread: NDArray[Any] = np.ndarray(shape, made.dtype, whole, first, strides)
        spread[...] = made
        made = spread
    made.flags.writeable = writeable
    return made
