"""What a task is: a name, the schemas of its parameters and data, and the work it opens.

Importing a task imports no torch: coordinator and agent check names and parameters with it, and
only the process that works calls `open`, `write_initial` or `model_spec`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from fedfactory.contracts.errors import DataError, EnvironmentFailedError, FedfactoryError
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.contracts.orders import Scalar, TrainParameters
from fedfactory.contracts.privacy import Measurement, Mechanism
from fedfactory.tasks.parameters import Parameter, check_parameters
from fedfactory.tasks.rehearsal import Passes, Rehearsal

if TYPE_CHECKING:  # NumPy comes with them, which an agent needs once there is work
    from fedfactory.tasks.examples import DataSchema, Examples, SiteData


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a piece of work gave. `examples`: how many different ones it used.

    `update` is the file of deltas written by `train`, None from `evaluate`.
    """

    examples: int
    metrics: Mapping[str, float]
    update: BlobRef | None


class Workload(Protocol):
    """A task made ready to work: its model in memory, its data prepared."""

    @property
    def spec(self) -> ModelSpec:
        """The model's tensors."""

    def train(self, *, base: Path, out: Path, training: TrainParameters, seed: int) -> Outcome:
        """Train from the model in `base`, write the update (delta, float tensors) to `out`.

        `seed` drives everything random: same seed, same bytes.
        """

    def evaluate(self, *, base: Path) -> Outcome:
        """Measure the model in `base` on the site's test split."""

    def train_privately(
        self, *, base: Path, out: Path, training: TrainParameters, mechanism: Mechanism
    ) -> Outcome:
        """Train by DP-SGD as `mechanism` says; its noise and sampling never repeat.

        No metrics come of it, and `examples` is the true count: it stays at the site.
        """

    def evaluate_privately(self, *, base: Path, measurement: Measurement) -> Outcome:
        """Measure on the test split; the metrics are noised and may leave."""


class DataParameters(dict[str, Scalar]):
    """The parameters of an order that its task's `data_parameters` name, and no other."""

    def __missing__(self, name: str) -> Scalar:
        raise EnvironmentFailedError(
            f"the task's code reads parameter '{name}' to say what its data are, and its"
            " data_parameters do not name it"
        )


class Task(ABC):
    """One thing to learn. `metrics` names what its work may report; anything else is kept back.

    `data_parameters` names the parameters that describe data: columns, labels, windows; not those
    of the model alone. Nothing else decides which records fit. Under differential privacy the
    site's policy fixes each of them, so that no order asks the records which of them fit.
    """

    name: ClassVar[str]
    parameters: ClassVar[Mapping[str, Parameter]]
    data_parameters: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]]

    def check(self, parameters: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return the parameters as they are, once every one is known, present and in range.

        Raises:
            ValueRangeError: a value is missing, of the wrong type or out of range.
            UnknownNameError: a parameter that the task does not have.
        """
        return check_parameters(self.parameters, parameters)

    def schema(self, parameters: Mapping[str, Scalar]) -> DataSchema | None:
        """Return the form of the data that these data parameters ask for; see `data_schema`.

        None: the task reads no data and needs no torch.
        """
        del parameters
        return None

    def data_schema(self, parameters: Mapping[str, Scalar]) -> DataSchema | None:
        """Return the form of the data that an order's (checked) parameters ask for.

        `schema` gets the data parameters alone: nothing else may decide which records fit.

        Raises:
            EnvironmentFailedError: the task's code reads another parameter.
        """
        return self.schema(self.data_parameters_of(parameters))

    def data_parameters_of(self, parameters: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """Return those of an order's parameters that describe data."""
        return DataParameters((name, parameters[name]) for name in self.data_parameters)

    def reports(self, parameters: Mapping[str, Scalar]) -> tuple[str, ...]:
        """Return which of `metrics` the work reports with these parameters (checked ones)."""
        del parameters
        return self.metrics

    def private_obstacle(self, parameters: Mapping[str, Scalar]) -> str | None:
        """Return why these parameters cannot be trained by DP-SGD, and what can; None if they can.

        Answers without importing torch, so that a run and a site refuse before anything starts.
        """
        del parameters
        return None

    def rehearse(
        self, parameters: Mapping[str, Scalar], device: str, rehearsal: Rehearsal
    ) -> Passes:
        """Try private work without data; return how it will go, the same for all data.

        A record's share of a sum must be the same bits whatever the other records are.

        Raises:
            ModelMismatchError: the model or the device cannot do it.
        """
        del device, rehearsal
        raise ModelMismatchError(f"task '{self.name}' has no private work: {parameters}")

    def bundled(self, parameters: Mapping[str, Scalar]) -> Examples:
        """Return the public, or generated, data that come with the task, in the form of its schema.

        `parameters` are the data parameters, as for `schema`.

        Raises:
            DataError: the task comes with none.
        """
        del parameters
        raise DataError(f"task '{self.name}' comes with no data of its own: name a file")

    @abstractmethod
    def model_spec(self, parameters: Mapping[str, Scalar]) -> ModelSpec:
        """Return the tensors of the model that these parameters describe."""

    @abstractmethod
    def write_initial(self, parameters: Mapping[str, Scalar], seed: int, path: Path) -> BlobRef:
        """Write the initial model as safetensors: same seed, same bytes."""

    @abstractmethod
    def open(
        self, parameters: Mapping[str, Scalar], data: SiteData | None, device: str
    ) -> Workload:
        """Make ready to work on `data` (of the task's schema) on `device`.

        Raises:
            DataError: the data does not fit the task's schema.
        """


class ModelMismatchError(FedfactoryError):
    """The base model does not have the tensors of the task's own model."""


class UnstableKernelsError(ModelMismatchError):
    """A record's gradient does not repeat on this device, not even one record at a time."""
