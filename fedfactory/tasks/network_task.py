"""Tasks that train a torch network: what they share. Importing this imports no torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import DataError
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import DataSchema, SiteData
from fedfactory.tasks.rehearsal import Passes, Rehearsal
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.task import Task, Workload
from fedfactory.wire.arrays import spec_of, write_arrays

if TYPE_CHECKING:
    from torch import nn

# What was tried in this process. Library versions do not change in one.
_REHEARSED: Final[dict[tuple[Any, ...], Passes]] = {}
_MOST_REHEARSED: Final = 256  # a coordinator varies parameters within a policy's ranges


class NetworkTask(Task):
    """A task whose model is a torch module.

    The schema's label decides the loss: cross-entropy for classes (outputs (batch, classes)), the
    squared error for a number (outputs (batch, 1)).
    """

    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    @abstractmethod
    def schema(self, parameters: Mapping[str, Scalar]) -> DataSchema:
        """See Task; a network always has data."""

    def data_schema(self, parameters: Mapping[str, Scalar]) -> DataSchema:
        """See Task; a network always has data."""
        return self.schema(self.data_parameters_of(parameters))

    def reports(self, parameters: Mapping[str, Scalar]) -> tuple[str, ...]:
        """See Task; the error of a number, or how often a class was right, but not both."""
        other = "accuracy" if self.data_schema(parameters).classes is None else "mae"
        return tuple(name for name in self.metrics if name != other)

    @abstractmethod
    def network(self, parameters: Mapping[str, Scalar]) -> nn.Module:
        """Build the network, initialised from torch's default generator."""

    def model_spec(self, parameters: Mapping[str, Scalar]) -> ModelSpec:
        """See Task."""
        from fedfactory.tasks.learning import arrays_of

        return spec_of(arrays_of(self.network(self.check(parameters))))

    def write_initial(self, parameters: Mapping[str, Scalar], seed: int, path: Path) -> BlobRef:
        """See Task."""
        import torch

        from fedfactory.tasks.learning import arrays_of

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "init"))
            network = self.network(self.check(parameters))
        return write_arrays(path, arrays_of(network))

    def open(
        self, parameters: Mapping[str, Scalar], data: SiteData | None, device: str
    ) -> Workload:
        """See Task."""
        from fedfactory.tasks.learning import Learning
        from fedfactory.tasks.objectives import objective_of

        network = self.network(self.check(parameters))
        if data is None:
            raise DataError(f"task '{self.name}' works on data, and the site names none for it")
        objective = objective_of(self.data_schema(parameters))
        rehearse = partial(self.rehearse, parameters, device)
        return Learning(network, data, device, objective, rehearse)

    def rehearse(
        self, parameters: Mapping[str, Scalar], device: str, rehearsal: Rehearsal
    ) -> Passes:
        """See Task; tried once in a process, on a network of its own."""
        import torch

        key = (self.name, to_json(parameters), device, rehearsal, torch.get_num_threads())
        if key not in _REHEARSED:
            from fedfactory.tasks.objectives import objective_of
            from fedfactory.tasks.row_invariance import settle_passes

            schema = self.data_schema(parameters)
            network = self.network(self.check(parameters)).to(device)
            while len(_REHEARSED) >= _MOST_REHEARSED:
                del _REHEARSED[next(iter(_REHEARSED))]
            _REHEARSED[key] = settle_passes(network, objective_of(schema), schema, rehearsal)
        return _REHEARSED[key]
