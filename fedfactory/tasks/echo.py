"""No learning: a model of so many megabytes goes down, an update of the same size comes up.

For benchmarks of everything but training. Every update is a random pattern of its own, so that
no two are the same array set. Written in pieces: needs no torch and little memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.model import BlobRef, ModelSpec, TensorSpec
from fedfactory.contracts.orders import Scalar, TrainParameters
from fedfactory.contracts.privacy import Measurement, Mechanism
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.parameters import Parameter, WholeNumber
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.task import ModelMismatchError, Outcome, Task, Workload
from fedfactory.wire.arrays import ArrayFile, ArrayWriter

TENSORS: Final = 10
MEGABYTE: Final = 1_000_000
OBSTACLE: Final = "task 'echo' learns nothing, so there is nothing to protect; use privacy=none"
_PIECE: Final = 1 << 18


class Echo(Task):
    """Send it back."""

    name: ClassVar[str] = "echo"
    parameters: ClassVar[Mapping[str, Parameter]] = {"megabytes": WholeNumber(1, 100_000)}
    metrics: ClassVar[tuple[str, ...]] = ()

    def private_obstacle(self, parameters: Mapping[str, Scalar]) -> str | None:
        """See Task."""
        del parameters
        return OBSTACLE

    def model_spec(self, parameters: Mapping[str, Scalar]) -> ModelSpec:
        """Ten float32 tensors of equal length."""
        megabytes = self.check(parameters)["megabytes"]
        assert isinstance(megabytes, int)
        shape = (megabytes * MEGABYTE // 4 // TENSORS,)
        names = (f"block-{number}" for number in range(TENSORS))
        return ModelSpec(tensors=tuple(TensorSpec(name=n, shape=shape, dtype="F32") for n in names))

    def write_initial(self, parameters: Mapping[str, Scalar], seed: int, path: Path) -> BlobRef:
        """See Task."""
        return _write_pattern(path, self.model_spec(parameters), derive_seed(seed, "init"))

    def open(
        self, parameters: Mapping[str, Scalar], data: SiteData | None, device: str
    ) -> Workload:
        """See Task."""
        del data, device
        return _Echoing(self.model_spec(parameters))


class _Echoing:
    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def train(self, *, base: Path, out: Path, training: TrainParameters, seed: int) -> Outcome:
        """Write this site's pattern as the update."""
        del training
        self._check(base)
        return Outcome(examples=1, metrics={}, update=_write_pattern(out, self.spec, seed))

    def evaluate(self, *, base: Path) -> Outcome:
        """There is nothing to measure."""
        self._check(base)
        return Outcome(examples=1, metrics={}, update=None)

    def train_privately(
        self, *, base: Path, out: Path, training: TrainParameters, mechanism: Mechanism
    ) -> Outcome:
        """Refuse: there is no gradient to clip."""
        del base, out, training, mechanism
        raise UsageError(OBSTACLE)

    def evaluate_privately(self, *, base: Path, measurement: Measurement) -> Outcome:
        """Refuse likewise."""
        del base, measurement
        raise UsageError(OBSTACLE)

    def _check(self, base: Path) -> None:
        with ArrayFile(base) as file:
            if difference := self.spec.difference(file.spec):
                raise ModelMismatchError(f"the base model does not fit the task: {difference}")


def _write_pattern(path: Path, spec: ModelSpec, seed: int) -> BlobRef:
    # No two pieces alike: a transport that recognises equal content must move them all.
    pattern = np.random.default_rng(seed).standard_normal(_PIECE, dtype=np.float32) * 1e-3
    piece = np.empty_like(pattern)
    writer = ArrayWriter(path, spec)
    written = 0
    for tensor in spec.tensors:
        for start in range(0, tensor.elements, _PIECE):
            np.add(pattern, np.float32(1e-6 * written), out=piece)
            writer.write(piece[: tensor.elements - start])
            written += 1
    return writer.commit()
