"""The contract of tasks, for ours and for those of other packages (group fedfactory.tasks).

Subclass TaskContract and override the `case` fixture with a TaskCase of your task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from fedfactory.contracts.errors import UnknownNameError, ValueRangeError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.parameters import Choice, Parameter, Text, WholeNumber
from fedfactory.tasks.table import load_task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCase:
    """Parameters that a task takes, and `others`: further values of single parameters.

    Values of choices and whole numbers are found from the task's own schema; texts need `others`.
    """

    task: str
    parameters: Mapping[str, Scalar]
    others: Mapping[str, Sequence[Scalar]] = field(default_factory=dict)


class TaskContract:
    """What a run, a site's policy and a worker rely on."""

    @pytest.fixture
    def case(self) -> TaskCase:
        """The task to try."""
        raise AssertionError("say which task, and parameters that it takes")

    def test_its_data_parameters_are_parameters(self, case: TaskCase) -> None:
        """Each named once, in a literal tuple of the class."""
        task = load_task(case.task)
        assert isinstance(type(task).data_parameters, tuple)
        assert len(set(task.data_parameters)) == len(task.data_parameters)
        assert set(task.data_parameters) <= set(task.parameters)

    def test_its_data_follow_from_the_data_parameters_alone(self, case: TaskCase) -> None:
        """Whatever the other parameters are, the schema is the same one.

        A site's policy fixes the data parameters. Were there another that decides which records
        fit, a coordinator would choose it.
        """
        task = load_task(case.task)
        expected = task.data_schema(case.parameters)
        assert expected == task.data_schema(dict(case.parameters))
        for name in set(task.parameters) - set(task.data_parameters):
            for value in _values(task.parameters[name], case.others.get(name, ())):
                changed = {**case.parameters, name: value}
                assert task.data_schema(changed) == expected, name

    def test_its_schema_reads_no_other_parameter(self, case: TaskCase) -> None:
        """Not even to ignore it."""
        task = load_task(case.task)
        reads = _Reads(task.data_parameters_of(case.parameters))
        assert task.schema(reads) == task.data_schema(case.parameters)
        assert reads.names <= set(task.data_parameters)

    def test_its_parameters_are_checked(self, case: TaskCase) -> None:
        """Those of the case hold; one that is missing or unknown does not."""
        task = load_task(case.task)
        assert task.check(case.parameters) == case.parameters
        for name in case.parameters:
            fewer = {k: v for k, v in case.parameters.items() if k != name}
            with pytest.raises(ValueRangeError):
                task.check(fewer)
        with pytest.raises(UnknownNameError):
            task.check({**case.parameters, "nonsense": 1})


class _Reads(dict[str, Scalar]):
    """Notes which names are asked for, also those that are not there."""

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        super().__init__(values)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Scalar:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Scalar = None) -> Scalar:  # type: ignore[override]
        """Note the name, and look."""
        self.names.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)


def _values(parameter: Parameter, others: Sequence[Scalar]) -> Sequence[Scalar]:
    match parameter:
        case Choice():
            return parameter.names
        case WholeNumber():
            between = (parameter.low + parameter.high) // 2
            return (parameter.low, parameter.low + 1, between, parameter.high)
        case Text():
            return others
