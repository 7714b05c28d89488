"""Whether a source fits a task, in counts and names alone; made for the site's administrator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedfactory.contracts.errors import DataError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.columns import Categorical, Classes, Column
from fedfactory.tasks.examples import DataSchema, Examples, SiteData
from fedfactory.tasks.task import Task
from site_agents.data.labels import shown
from site_agents.data.source import Source, schema_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One side of the split: examples, privacy units, and examples of each class (if classes)."""

    examples: int
    units: int
    classes: Mapping[str, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A source under a task. `problem` says why it does not fit; then there are no parts."""

    task: str
    wants: tuple[str, ...]
    problem: str | None
    by_unit: bool
    train: Part | None
    test: Part | None


def examine(source: Source, task: Task, parameters: Mapping[str, Scalar]) -> Fit:
    """Read a source as a task would.

    Raises:
        DataError: the task takes no data.
    """
    schema = schema_of(task, parameters)
    data: SiteData | None = None
    problem = None
    try:
        data = source.load(task, parameters)
    except DataError as error:
        problem = error.public_message
    return Fit(
        task=task.name,
        wants=wants(schema),
        problem=problem,
        by_unit=data is not None and data.train.unit is not None,
        train=_part(data.train, schema) if data else None,
        test=_part(data.test, schema) if data else None,
    )


def wants(schema: DataSchema) -> tuple[str, ...]:
    """Say what a task asks of data, a line for each column; many of a kind are one line."""
    columns = [_column(column) for column in schema.columns]
    if len(columns) > 32:
        first, last = schema.columns[0].name, schema.columns[-1].name
        columns = [f"{len(columns)} columns, {first} to {last}; {first}: {columns[0]}"]
    else:
        columns = [f"{c.name}: {line}" for c, line in zip(schema.columns, columns, strict=True)]
    label = schema.label
    if isinstance(label, Classes):
        columns.append(f"{label.name} (label): one of {shown(label.names)}")
    else:
        columns.append(f"{label.name} (label): a number from {label.low:g} to {label.high:g}")
    if schema.windows is not None:
        columns.append(f"{schema.windows.order}: orders the rows of a unit; a unit is required")
    return tuple(columns)


def _column(column: Column) -> str:
    if isinstance(column, Categorical):
        return f"one of {shown(column.categories)}"
    return f"a number from {column.low:g} to {column.high:g}"


def _part(examples: Examples, schema: DataSchema) -> Part:
    classes = None
    if isinstance(schema.label, Classes):
        counts = np.bincount(examples.y.astype(np.int64), minlength=len(schema.label.names))
        classes = dict(zip(schema.label.names, counts.tolist(), strict=True))
    units = len(examples) if examples.unit is None else len(np.unique(examples.unit))
    return Part(examples=len(examples), units=units, classes=classes)
