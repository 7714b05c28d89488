"""Tables of generated rows, as files that a site could have: to try a task before one has data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.columns import Classes, Label
from fedfactory.tasks.synthetic import synthetic_readings, synthetic_rows
from fedfactory.tasks.tabular import declared_columns
from fedfactory.tasks.timeseries import declared_sensors

UNIT: Final = "machine"


def generate(task: str, parameters: Mapping[str, Scalar], count: int, seed: int) -> Any:
    """Return a pyarrow table of `count` rows (tabular) or the readings of `count` machines.

    Its columns have the task's own names; a machine's is `machine`.
    """
    import pyarrow as pa

    table: dict[str, Any] = {}
    if task == "tabular":
        numeric, categorical, label = declared_columns(parameters)
        x, y = synthetic_rows(numeric, categorical, label, count, seed)
        table |= {c.name: x[:, i] for i, c in enumerate(numeric)}
        for i, column in enumerate(categorical, start=len(numeric)):
            table[column.name] = np.array(column.categories)[x[:, i].astype(int)]
    else:
        sensors, label = declared_sensors(parameters)
        found = synthetic_readings(sensors, label, count, seed)
        y = found.y
        table[UNIT] = [f"m{number:05d}" for number in found.unit]
        table[str(parameters["order"])] = found.order.astype(np.int64)
        table |= {c.name: found.x[:, i] for i, c in enumerate(sensors)}
    table[label.name] = _named(label, y)
    return pa.table(table)


def write_table(table: Any, path: Path) -> None:
    """Write a table to a new .csv or .parquet file.

    Raises:
        UsageError: another kind of file, or one that is there or cannot be written.
    """
    from pyarrow import csv, parquet

    if path.suffix not in (".csv", ".parquet"):
        raise UsageError(f"{path}: expected a name that ends in .csv or .parquet")
    try:
        with path.open("xb") as file:
            if path.suffix == ".csv":
                csv.write_csv(table, file, csv.WriteOptions(quoting_style="needed"))
            else:
                parquet.write_table(table, file)
    except FileExistsError as error:
        raise UsageError(f"{path} is there already: name another file") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror})") from error


def _named(label: Label, y: NDArray[Any]) -> NDArray[Any]:
    return np.array(label.names)[y] if isinstance(label, Classes) else y
