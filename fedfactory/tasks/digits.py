"""Handwritten digits: 8 x 8 pixels from 0 to 1, ten classes (UCI optical recognition, via sklearn).

An MLP of about 103k parameters, a small CNN with group norm, and the same with batch norm (whose
integer counter exercises models that carry more than floats).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.bundled import read_bundled
from fedfactory.tasks.columns import Classes, numbered
from fedfactory.tasks.examples import DataSchema, Examples
from fedfactory.tasks.network_task import NetworkTask
from fedfactory.tasks.parameters import Choice, Parameter

if TYPE_CHECKING:
    from torch import nn

MAX_PIXEL: Final = 16.0
CLASSES: Final = 10
SCHEMA: Final = DataSchema(
    features=(64,),
    columns=numbered("x", 64, low=0.0, high=1.0),
    label=Classes(name="y", names=tuple(str(digit) for digit in range(CLASSES))),
)


class Digits(NetworkTask):
    """Which digit is it?"""

    name: ClassVar[str] = "digits"
    parameters: ClassVar[Mapping[str, Parameter]] = {"model": Choice(("mlp", "cnn", "cnn_bn"))}

    def schema(self, parameters: Mapping[str, Scalar]) -> DataSchema:
        """64 pixels, x0 to x63 row by row, and the digit, y."""
        del parameters
        return SCHEMA

    def private_obstacle(self, parameters: Mapping[str, Scalar]) -> str | None:
        """See Task."""
        if parameters["model"] != "cnn_bn":
            return None
        return (
            "task.model=cnn_bn has batch norm, which mixes the records of a batch;"
            " use task.model=cnn, the same network with group norm"
        )

    def bundled(self, parameters: Mapping[str, Scalar]) -> Examples:
        """Return the 1,797 digits, pixels divided by 16."""
        del parameters
        table = read_bundled("digits.csv.gz")
        x = np.ascontiguousarray(table[:, :-1] / MAX_PIXEL, dtype=np.float32)
        return Examples(x=x, y=table[:, -1].astype(np.int64))

    def network(self, parameters: Mapping[str, Scalar]) -> nn.Module:
        """Build the MLP or one of the CNNs."""
        from torch import nn

        if parameters["model"] == "mlp":
            return nn.Sequential(
                nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 320), nn.ReLU(), nn.Linear(320, 10)
            )
        norm = nn.BatchNorm2d if parameters["model"] == "cnn_bn" else _group_norm
        return nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            norm(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            norm(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, CLASSES),
        )


def _group_norm(channels: int) -> nn.Module:
    from torch import nn

    return nn.GroupNorm(4, channels)
