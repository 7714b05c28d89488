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
from site_agents.data.pieces import PrivateData, one_sided
from site_agents.data.source import Source, schema_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One side of the split: examples, privacy units, and examples of each class (if classes)."""

    examples: int
    units: int
    classes: Mapping[str, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A source under a task. `problem` says why it does not fit; without its form, without parts.

    `nulls` says, in counts, which records count as null under differential privacy.
    """

    task: str
    wants: tuple[str, ...]
    problem: str | None
    nulls: tuple[str, ...]
    by_unit: bool
    train: Part | None
    test: Part | None


def examine(
    source: Source, task: Task, parameters: Mapping[str, Scalar], *, unit: str, private: bool
) -> Fit:
    """Read a source as a worker would.

    `unit` is the policy's; `private`: whether the policy asks for differential privacy. With it
    records that do not fit are a problem that nothing else will show; without it work stops at
    them, so that what stops no work is no problem.

    Raises:
        DataError: the task takes no data.
    """
    schema = schema_of(task, parameters)
    by_unit = unit != "row" if source.by_unit is None else source.by_unit
    data: SiteData | None = None
    problem: str | None = None
    nulls: tuple[str, ...] = ()
    try:
        if not private:
            data = source.load(task, parameters)
    except DataError as error:
        problem = error.public_message
    try:
        found = source.load_privately(task, parameters, by_unit=by_unit)
        data, nulls = data or found.data, tuple(fault.sentence for fault in found.faults)
        problem = _problem(found) if private else problem
    except DataError as error:
        problem = error.public_message if private else problem
    return Fit(
        task=task.name,
        wants=wants(schema),
        problem=problem,
        nulls=nulls,
        by_unit=data is not None and data.train.unit is not None,
        train=_part(data.train, schema) if data else None,
        test=_part(data.test, schema) if data else None,
    )


def _problem(found: PrivateData) -> str | None:
    """Say what is wrong with data that work under differential privacy takes as they are."""
    if found.faults:
        nulls = "; ".join(fault.sentence for fault in found.faults)
        return f"records that count as null under differential privacy: {nulls}"
    if not len(found.data.train) or not len(found.data.test):
        return one_sided(found.data)
    return None


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
