"""A strategy's memory as one file, and back onto a strategy made anew. Never pickle.

The file is safetensors: `memory` is the JSON that says what everything is (memory_values.py),
`array-N` are raw bytes. What a strategy remembers is its attributes, unless it says so itself by
`state_dict()` and `load_state_dict(state)`; and the configurations that live through its run.
"""

from __future__ import annotations

import json
import struct
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedfactory.contracts.errors import IntegrityError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.memory_values import (
    CONTAINERS,
    Bytes,
    Kind,
    Reader,
    Values,
)
from fedfactory.coordinator.aggregating.strategy_code import (
    attributes,
    class_data,
    set_attributes,
)
from fedfactory.wire.arrays import ArrayFile, file_ref, write_arrays

_VERSION: Final = 2
_MEMORY: Final = "memory"
_OLD: Final = "graph"  # of version 1
_OWN: Final = "strategy."
_STATE: Final = "state_dict()"
_MALFORMED: Final = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, struct.error),
    OSError,
)


class StrategyMemory:
    """Watches one strategy from construction on, and the run's configurations in `beside`.

    `kinds` may be remembered besides plain values. `restore` replaces the values of `beside`.

    Raises:
        UsageError: the strategy holds what cannot be saved.
    """

    def __init__(
        self, strategy: object, beside: dict[str, Any], kinds: tuple[Kind, ...] = ()
    ) -> None:
        self._strategy = strategy
        self._name = type(strategy).__name__
        if isinstance(strategy, dict | list | set | bytearray):
            raise UsageError(
                f"{self._name} is itself a container, whose items are not saved; keep them in an"
                " attribute (docs/researcher.md)"
            )
        self._beside = beside
        self._kinds = (*CONTAINERS, *kinds)
        self._code: dict[str, object] = {}
        self._scalars: dict[str, str] = {}
        try:
            self._tells = self._has_state_dict()
            text, arrays = self._collect(first=True)
        except AggregationError as error:
            raise UsageError(error.public_message, diagnostic=error.diagnostic) from error
        self._fresh = None if arrays else text
        self._shared = self._class_data()

    def save(self, folder: Path) -> BlobRef | None:
        """Write the memory to `folder`/<digest in hex>; the caller makes it durable.

        None, and no file, if it is what construction made.

        Raises:
            AggregationError: the strategy holds what cannot be saved.
        """
        text, arrays = self._collect()
        shared = self._class_data()
        for name in shared.keys() | self._shared.keys():
            if shared.get(name) != self._shared.get(name):
                raise AggregationError(
                    f"{self._name}: the class attribute {name} changed, which is not saved; make it"
                    " an attribute of the strategy, in __init__ (docs/researcher.md)"
                )
        if text == self._fresh:
            return None
        pieces = {_array(number): array for number, array in arrays.items()}
        pieces[_MEMORY] = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        ref = write_arrays(folder / _MEMORY, pieces)
        (folder / _MEMORY).replace(folder / ref.digest.removeprefix("sha256:"))
        return ref

    def restore(self, path: Path) -> None:
        """Take up what `save` wrote, onto a strategy that is as construction made it.

        Raises:
            IntegrityError: damaged, or the memory of another strategy or version.
        """
        try:
            if file_ref(path).digest != f"sha256:{path.name}":
                raise IntegrityError(f"{path.name}: the strategy's memory is not what was written")
            found = self._read(path)
            beside = {name: found.pop(name) for name in self._beside}
            state = found.pop(_STATE) if self._tells else None
        except _MALFORMED as error:
            raise self._unfit(path, f"{type(error).__name__}: {error}") from error
        self._beside.update(beside)
        if not self._tells:
            own = {name.removeprefix(_OWN): value for name, value in found.items()}
            set_attributes(self._strategy, own)
            return
        try:
            self._strategy.load_state_dict(state)  # type: ignore[attr-defined]
        except Exception as error:
            raise self._unfit(path, traceback.format_exc()) from error

    def _has_state_dict(self) -> bool:
        names = ("state_dict", "load_state_dict")
        missing = [name for name in names if not callable(getattr(self._strategy, name, None))]
        if len(missing) == 1:
            (other,) = set(names) - set(missing)
            raise AggregationError(
                f"{self._name} has {other}() without {missing[0]}(): define both"
            )
        return not missing

    def _collect(self, *, first: bool = False) -> tuple[str, dict[int, Bytes]]:
        """Return the JSON of all that is remembered, and the arrays that it speaks of."""
        values = self._values(is_new=first)
        try:
            own = {f"{_OWN}{name}": value for name, value in attributes(self._strategy).items()}
            if self._tells:
                own = {_STATE: self._state_dict()}
            root = {
                name: values.add(name, value) for name, value in {**self._beside, **own}.items()
            }
            values.check_memory()
        except AggregationError as error:
            told = f"{self._name}: {error.public_message}"
            raise AggregationError(told, diagnostic=error.diagnostic) from error
        about = {"version": _VERSION, "class": _class_of(self._strategy)}
        found = {**about, "root": root, "nodes": values.nodes}
        return json.dumps(found, separators=(",", ":"), allow_nan=False), values.arrays

    def _values(self, *, is_new: bool) -> Values:
        return Values(
            kinds=self._kinds,
            code=self._code,
            scalars=self._scalars,
            strategy=self._strategy,
            is_new=is_new,
        )

    def _state_dict(self) -> Any:
        try:
            return self._strategy.state_dict()  # type: ignore[attr-defined]
        except Exception as error:
            raise AggregationError(
                f"state_dict: {type(error).__name__}: {error}", diagnostic=traceback.format_exc()
            ) from error

    def _read(self, path: Path) -> dict[str, Any]:
        with ArrayFile(path) as file:
            found: dict[str, Any] = {"version": 1}
            if all(tensor.name != _OLD for tensor in file.spec.tensors):
                found = json.loads(file.read(_MEMORY).tobytes())
            if found["version"] != _VERSION:
                raise IntegrityError(
                    f"{path.name}: a strategy's memory in form {found['version']}, of another"
                    f" version of fedfactory; this one reads form {_VERSION}. Go on with that"
                    " version, or begin a new run from the last model (model=FILE)"
                )
            if found["class"] != _class_of(self._strategy):
                raise ValueError(f"it is of a {found['class']}")
            reader = Reader(
                kinds=self._kinds, code=self._code, read=lambda number: file.read(_array(number))
            )
            reader.add_nodes(found["nodes"])
        return {name: reader.value(value) for name, value in found["root"].items()}

    def _unfit(self, path: Path, diagnostic: str) -> IntegrityError:
        return IntegrityError(
            f"{path.name}: not the memory of such a {self._name}; were the strategy or its options"
            " changed, or was the run begun with another?",
            diagnostic=diagnostic,
        )

    def _class_data(self) -> dict[str, Any]:
        """Return a digest of what the strategy's classes share, by name; some kinds have none."""
        found = {}
        for name, value in class_data(type(self._strategy)).items():
            values = self._values(is_new=False)
            with suppress(AggregationError):
                told = values.add(name, value)
                arrays = tuple(array.tobytes() for array in values.arrays.values())
                found[name] = json.dumps([told, values.nodes]), hash(arrays)
        return found


def _class_of(strategy: object) -> str:
    return f"{type(strategy).__module__}:{type(strategy).__qualname__}"


def _array(number: int) -> str:
    return f"array-{number:08}"
