"""Every task keeps the contract, and one that reads more of an order than it says is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from fedfactory.choices import values_of
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.tasks.parameters import WholeNumber
from fedfactory.tasks.table import TASKS, load_task
from fedfactory.tasks.tabular import Tabular
from fedfactory.testing.tasks import TaskCase, TaskContract


def written(name: str) -> dict[str, Any]:
    return {k: v for k, v in values_of("task", name).items() if k not in ("name", "data")}


class TestTasks(TaskContract):
    @pytest.fixture(params=TASKS.names())
    def case(self, request: pytest.FixtureRequest) -> TaskCase:
        return TaskCase(task=request.param, parameters=written(request.param))


class Greedy(Tabular):
    """Its data would follow a parameter that the policy need not fix."""

    name: ClassVar[str] = "greedy"

    def schema(self, parameters: Mapping[str, Any]) -> Any:
        if parameters["hidden"] > 8:
            raise AssertionError
        return super().schema(parameters)


class Misnamed(Tabular):
    name: ClassVar[str] = "misnamed"
    parameters: ClassVar[Mapping[str, Any]] = {"hidden": WholeNumber(1, 2)}
    data_parameters: ClassVar[tuple[str, ...]] = ("window", "hidden")


@pytest.mark.rule("26")
def test_a_task_that_reads_another_parameter_for_its_data_is_refused() -> None:
    with pytest.raises(EnvironmentFailedError, match="reads parameter 'hidden'"):
        Greedy().data_schema(written("tabular"))


def test_a_data_parameter_that_is_none_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(TASKS), "load", lambda self, name: Misnamed)
    with pytest.raises(EnvironmentFailedError, match=r"'misnamed'.* window, which it does not"):
        load_task("misnamed")


def test_what_describes_data() -> None:
    """The list of the docs: no bundled task leaves out what a record must fit."""
    assert {name: load_task(name).data_parameters for name in TASKS.names()} == {
        "breast_cancer": (),
        "digits": (),
        "echo": (),
        "tabular": ("label", "numeric", "categorical"),
        "timeseries": ("label", "sensors", "order", "window", "stride"),
    }
