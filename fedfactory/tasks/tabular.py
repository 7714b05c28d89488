"""Any table: numeric and categorical columns, a class or a number to predict, without Python.

The run declares the columns that every site must have; a site's own configuration maps its names
onto them. Scaling and categories are declared, never computed from records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.columns import (
    MAX_TEXT,
    Categorical,
    Column,
    Label,
    Scaled,
    parse_categorical,
    parse_classes,
    parse_numeric,
    parse_scaled,
)
from fedfactory.tasks.examples import DataSchema, Examples
from fedfactory.tasks.network_task import NetworkTask
from fedfactory.tasks.parameters import Choice, Parameter, Text, WholeNumber
from fedfactory.tasks.synthetic import synthetic_rows

if TYPE_CHECKING:
    from torch import nn

MAX_INPUTS: Final = 4096
BUNDLED_ROWS: Final = 2000
BUNDLED_SEED: Final = 1
LABEL_PARAMETERS: Final[Mapping[str, Parameter]] = {
    "kind": Choice(("classification", "regression")),
    "label": Text("name:class|class, or name:centre:scale for kind=regression", MAX_TEXT),
}


class Tabular(NetworkTask):
    """Predict one column of a table from others."""

    name: ClassVar[str] = "tabular"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "mae")
    parameters: ClassVar[Mapping[str, Parameter]] = {
        **LABEL_PARAMETERS,
        "numeric": Text("name:centre:scale,...", MAX_TEXT),
        "categorical": Text("name:category|category,...", MAX_TEXT),
        "model": Choice(("linear", "mlp")),
        "hidden": WholeNumber(1, 4096),
    }
    data_parameters: ClassVar[tuple[str, ...]] = ("label", "numeric", "categorical")

    def check(self, parameters: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        """See Task; also reads the columns that the texts declare."""
        super().check(parameters)
        check_label(parameters)
        numeric, categorical, label = declared_columns(parameters)
        if not (numeric or categorical):
            raise ValueRangeError("task.numeric", "", "at least one column, here or in categorical")
        check_names([*(c.name for c in numeric), *(c.name for c in categorical), label.name])
        if len(numeric) + sum(len(c.categories) for c in categorical) > MAX_INPUTS:
            raise ValueRangeError(
                "task.categorical",
                f"({len(categorical)} columns)",
                f"at most {MAX_INPUTS} numeric columns and categories together",
            )
        return parameters

    def schema(self, parameters: Mapping[str, Scalar]) -> DataSchema:
        """Numeric columns as they come, then categorical ones, each in the order declared."""
        numeric, categorical, label = declared_columns(parameters)
        columns: tuple[Column, ...] = (*(column.column() for column in numeric), *categorical)
        return DataSchema(features=(len(columns),), columns=columns, label=label)

    def bundled(self, parameters: Mapping[str, Scalar]) -> Examples:
        """Return generated rows of the declared columns, whose label depends on all of them."""
        x, y = synthetic_rows(*declared_columns(parameters), BUNDLED_ROWS, BUNDLED_SEED)
        return self.data_schema(parameters).check(x, y, "generated rows")

    def network(self, parameters: Mapping[str, Scalar]) -> nn.Module:
        """Build a linear model, or one hidden layer, behind the declared scaling."""
        from torch import nn

        from fedfactory.tasks.scaling import TableInput

        numeric, categorical, label = declared_columns(parameters)
        form = TableInput(
            [column.centre for column in numeric],
            [column.scale for column in numeric],
            [len(column.categories) for column in categorical],
        )
        if parameters["model"] == "linear":
            return nn.Sequential(form, nn.Linear(form.width, outputs(label)))
        hidden = parameters["hidden"]
        assert isinstance(hidden, int)
        return nn.Sequential(
            form, nn.Linear(form.width, hidden), nn.ReLU(), nn.Linear(hidden, outputs(label))
        )


def check_label(parameters: Mapping[str, Scalar]) -> None:
    """Check that `label` has the form that `kind` asks for.

    Raises:
        ValueRangeError: names task.label.
    """
    parse = parse_classes if parameters["kind"] == "classification" else parse_scaled
    parse("task.label", str(parameters["label"]))


def parse_label(parameters: Mapping[str, Scalar]) -> Label:
    """Return what `label` declares: its own form says whether it is classes or a number.

    Raises:
        ValueRangeError: names task.label.
    """
    text = str(parameters["label"])
    parse = parse_classes if "|" in text else parse_scaled
    return parse("task.label", text)


def outputs(label: Label) -> int:
    """Return how many outputs a network needs: one a class, or the one number."""
    return 1 if isinstance(label, Scaled) else len(label.names)


def check_names(names: list[str]) -> None:
    """Check that no name stands for two columns.

    Raises:
        ValueRangeError: names it.
    """
    for name in names:
        if names.count(name) > 1:
            raise ValueRangeError("task", name, "each column once: a feature, or the label")


def declared_columns(
    parameters: Mapping[str, Scalar],
) -> tuple[tuple[Scaled, ...], tuple[Categorical, ...], Label]:
    """Return the numeric and categorical columns, and the label, that parameters declare.

    Raises:
        ValueRangeError: a text that does not have the form.
    """
    numeric = parse_numeric("task.numeric", str(parameters["numeric"]))
    categorical = parse_categorical("task.categorical", str(parameters["categorical"]))
    return numeric, categorical, parse_label(parameters)
