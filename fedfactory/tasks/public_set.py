"""A public data set that a coordinator measures models on: an NPZ file with x and y.

In the form of the task's schema, as `numpy.savez(FILE, x=..., y=...)` writes it; never unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedfactory.contracts.errors import DataError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import Examples
from fedfactory.tasks.task import Task


def read_public(path: Path, task: Task, parameters: Mapping[str, Scalar]) -> Examples:
    """Return the examples of a public set, checked against the task's schema.

    Raises:
        DataError: the task has no data, or the file is not of its form, or holds no example.
    """
    schema = task.data_schema(parameters)
    if schema is None:
        raise DataError(f"task '{task.name}' reads no data: there is nothing to measure on a set")
    try:
        with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path.name}: not a whole NPZ file of plain arrays x and y; write it by"
            " numpy.savez(FILE, x=..., y=...)",
            diagnostic=f"{type(error).__name__}: {error}",
        ) from error
    if x.ndim == 0 or y.ndim == 0 or len(y) == 0:
        raise DataError(f"{path.name}: expected at least one example, found none")
    return schema.check(x, y, path.name)
