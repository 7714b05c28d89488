"""Predictive maintenance: windows of sensor readings from machines, by a small 1-D CNN.

A site's table has a row for each reading: the machine (its `unit` column, required), when, the
sensors, and what is to be predicted at that moment. Windows of one machine overlap; under
differential privacy the unit is the machine, of which each draw takes one random window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.columns import MAX_TEXT, NAME, Label, Scaled, parse_numeric
from fedfactory.tasks.examples import DataSchema, Examples, Windows
from fedfactory.tasks.network_task import NetworkTask
from fedfactory.tasks.parameters import Parameter, Text, WholeNumber
from fedfactory.tasks.synthetic import synthetic_readings
from fedfactory.tasks.tabular import (
    LABEL_PARAMETERS,
    check_label,
    check_names,
    outputs,
    parse_label,
)
from fedfactory.tasks.windows import windows_of

if TYPE_CHECKING:
    from torch import nn

MAX_READINGS: Final = 1 << 20
KERNEL: Final = 5
GROUPS: Final = 4
BUNDLED_MACHINES: Final = 120
BUNDLED_SEED: Final = 1


class TimeSeries(NetworkTask):
    """Predict what a machine's label says at the end of a window."""

    name: ClassVar[str] = "timeseries"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "mae")
    parameters: ClassVar[Mapping[str, Parameter]] = {
        **LABEL_PARAMETERS,
        "sensors": Text("name:centre:scale,...", MAX_TEXT),
        "order": Text("name", 64),
        "window": WholeNumber(8, 4096),
        "stride": WholeNumber(1, 4096),
        "channels": WholeNumber(4, 512),
    }
    data_parameters: ClassVar[tuple[str, ...]] = ("label", "sensors", "order", "window", "stride")

    def check(self, parameters: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """See Task; also reads the columns that the texts declare."""
        super().check(parameters)
        check_label(parameters)
        sensors, label = declared_sensors(parameters)
        if not sensors:
            raise ValueRangeError("task.sensors", "", "at least one sensor")
        order = str(parameters["order"])
        if not NAME.fullmatch(order):
            raise ValueRangeError("task.order", order, "the name of the column that orders rows")
        check_names([*(sensor.name for sensor in sensors), label.name, order])
        if len(sensors) * _whole(parameters, "window") > MAX_READINGS:
            raise ValueRangeError(
                "task.window", parameters["window"], f"at most {MAX_READINGS} readings a window"
            )
        return parameters

    def schema(self, parameters: Mapping[str, Scalar]) -> DataSchema:
        """Windows (sensors, window) over the rows of a machine."""
        sensors, label = declared_sensors(parameters)
        windows = Windows(
            order=str(parameters["order"]),
            length=_whole(parameters, "window"),
            stride=_whole(parameters, "stride"),
        )
        return DataSchema(
            features=(len(sensors), windows.length),
            columns=tuple(sensor.column() for sensor in sensors),
            label=label,
            windows=windows,
        )

    def bundled(self, parameters: Mapping[str, Scalar]) -> Examples:
        """Return windows over generated machines that wear out."""
        schema = self.data_schema(parameters)
        assert schema.windows is not None
        found = synthetic_readings(*declared_sensors(parameters), BUNDLED_MACHINES, BUNDLED_SEED)
        rows = schema.of_rows().check(found.x, found.y, "generated readings")
        grouped = Examples(x=rows.x, y=rows.y, unit=found.unit)
        return windows_of(grouped, found.order, schema.windows)

    def network(self, parameters: Mapping[str, Scalar]) -> nn.Module:
        """Build two convolutions with group norm, a mean over time, and one linear layer."""
        from torch import nn

        from fedfactory.tasks.scaling import Standardise

        sensors, label = declared_sensors(parameters)
        channels = _whole(parameters, "channels")
        groups = math.gcd(GROUPS, channels)
        return nn.Sequential(
            Standardise([s.centre for s in sensors], [s.scale for s in sensors]),
            nn.Conv1d(len(sensors), channels, KERNEL, padding=KERNEL // 2),
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2),
            nn.GroupNorm(groups, channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(channels, outputs(label)),
        )


def declared_sensors(parameters: Mapping[str, Scalar]) -> tuple[tuple[Scaled, ...], Label]:
    """Return the sensors and the label that parameters declare.

    Raises:
        ValueRangeError: a text that does not have the form.
    """
    return parse_numeric("task.sensors", str(parameters["sensors"])), parse_label(parameters)


def _whole(parameters: Mapping[str, Scalar], key: str) -> int:
    value = parameters[key]
    assert isinstance(value, int)
    return value
