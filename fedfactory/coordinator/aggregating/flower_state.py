"""A Flower strategy's memory as one file, and back onto a strategy made anew. Never pickle.

The file is safetensors: `array-N` are raw bytes, and `graph` is the JSON that says what they are
(state_encoding.py). What a strategy remembers is its attributes, unless it says so itself by
`state_dict()` and `load_state_dict(state)`; and the configurations that live through its run.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp.strategy import Strategy

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef, ModelSpec, TensorSpec
from fedfactory.coordinator.aggregating.accumulator import AggregationError
from fedfactory.coordinator.aggregating.state_decoding import decode
from fedfactory.coordinator.aggregating.state_encoding import Bytes, Graph, encode
from fedfactory.coordinator.aggregating.state_kinds import Origin, name_of
from fedfactory.durable_file import sync_folder
from fedfactory.wire.arrays import ArrayFile, ArrayWriter, file_ref

_GRAPH: Final = "graph"


class StrategyMemory:
    """Watches one strategy and the run's configurations from construction on.

    Raises:
        AggregationError: the strategy holds what cannot be saved.
    """

    def __init__(self, strategy: Strategy, configs: dict[str, ConfigRecord]) -> None:
        self._strategy = strategy
        self._configs = configs
        self._tells = all(
            callable(getattr(strategy, name, None)) for name in ("state_dict", "load_state_dict")
        )
        try:
            self._origin = Origin({**configs} if self._tells else {**configs, "strategy": strategy})
        except RecursionError as error:
            raise AggregationError("the strategy holds too deeply nested things") from error
        fresh = self._graph()
        self._fresh = None if fresh.arrays else fresh.text

    def save(self, folder: Path) -> BlobRef | None:
        """Write the memory to `folder`/<digest in hex>, durably.

        None, and no file, if it is what construction made.

        Raises:
            AggregationError: the strategy holds what cannot be saved.
        """
        graph = self._graph()
        if not graph.arrays and graph.text == self._fresh:
            return None
        ref, partial = _write(folder, graph)
        partial.replace(folder / ref.digest.removeprefix("sha256:"))
        sync_folder(folder)
        return ref

    def restore(self, path: Path) -> None:
        """Take up what `save` wrote, onto a strategy that is as construction made it.

        Raises:
            IntegrityError: damaged, or the memory of another strategy.
        """
        if file_ref(path).digest != f"sha256:{path.name}":
            raise IntegrityError(f"{path.name}: the strategy's memory is not what was written")
        try:
            with ArrayFile(path) as file:
                text = file.read(_GRAPH).tobytes().decode("ascii")
                root = decode(text, lambda number: file.read(_name(number)), self._origin)
            if root["class"] != name_of(type(self._strategy)):
                raise ValueError(f"it is of a {root['class']}")
            if self._tells:
                self._strategy.load_state_dict(root["strategy"])  # type: ignore[attr-defined]
        except _MALFORMED as error:
            raise IntegrityError(
                f"{path.name}: not the memory of such a {type(self._strategy).__name__}; were the"
                " strategy or its options changed since the run began?",
                diagnostic=f"{type(error).__name__}: {error}",
            ) from error

    def _graph(self) -> Graph:
        remembered: Any = self._strategy
        if self._tells:
            remembered = self._strategy.state_dict()  # type: ignore[attr-defined]
        name = name_of(type(self._strategy))
        return encode({"class": name, **self._configs, "strategy": remembered}, self._origin)


_MALFORMED: Final = (
    *(KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, RecursionError),
)


def _name(number: int) -> str:
    return f"array-{number:08}"


def _write(folder: Path, graph: Graph) -> tuple[BlobRef, Path]:
    text: Bytes = np.frombuffer(graph.text.encode("ascii"), dtype=np.uint8)
    arrays = {_name(number): array for number, array in enumerate(graph.arrays)} | {_GRAPH: text}
    spec = ModelSpec(
        tensors=tuple(
            TensorSpec(name=name, shape=array.shape, dtype="U8") for name, array in arrays.items()
        )
    )
    handle, partial = tempfile.mkstemp(prefix=".state.", dir=folder)
    os.close(handle)
    writer = ArrayWriter(Path(partial), spec)
    try:
        for array in arrays.values():
            writer.write(array)
        ref = writer.commit()
        with Path(partial).open("rb") as file:
            os.fsync(file.fileno())
    except BaseException:
        writer.abandon()
        Path(partial).unlink(missing_ok=True)
        raise
    return ref, Path(partial)
