"""Tasks: bundled data, sizes, reproducible bytes, what an update holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedfactory.choices import values_of
from fedfactory.contracts.errors import (
    DataError,
    EnvironmentFailedError,
    UnknownNameError,
    ValueRangeError,
)
from fedfactory.contracts.orders import TrainParameters
from fedfactory.tasks.breast_cancer import DEVIATIONS, MEANS
from fedfactory.tasks.examples import Examples, SiteData, Windows
from fedfactory.tasks.growing import Growing
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import ModelMismatchError, Workload
from fedfactory.tasks.windows import windows_of
from fedfactory.wire.arrays import read_arrays, write_arrays

TRAINING = TrainParameters(
    local_epochs=1, batch_size=16, lr=0.1, momentum=0.9, proximal_mu=0.0, max_steps=None
)
MLP = {"model": "mlp"}
REGRESSION = {"kind": "regression", "label": "cost:1000:500"}


def written(name: str, **changed: Any) -> dict[str, Any]:
    """A task's parameters as conf/ has them."""
    found = {k: v for k, v in values_of("task", name).items() if k not in ("name", "data")}
    return found | changed


CASES = [
    ("digits", MLP),
    ("digits", {"model": "cnn"}),
    ("digits", {"model": "cnn_bn"}),
    ("breast_cancer", {}),
    ("tabular", written("tabular")),
    ("tabular", written("tabular", model="linear", **REGRESSION)),
    ("timeseries", written("timeseries")),
    ("timeseries", written("timeseries", **REGRESSION)),
]


def _open(name: str, parameters: dict[str, Any], folder: Path) -> tuple[Workload, Path]:
    task = load_task(name)
    examples = task.bundled(parameters)
    data = SiteData(train=examples.take(np.arange(100)), test=examples.take(np.arange(100, 150)))
    base = folder / "base"
    task.write_initial(parameters, 1, base)
    return task.open(parameters, data, "cpu"), base


def test_bundled_data_are_scikit_learns() -> None:
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    digits = load_task("digits").bundled(MLP)
    assert np.array_equal(digits.x * 16, x.astype(np.float32))
    assert np.array_equal(digits.y, y)
    x, y = datasets.load_breast_cancer(return_X_y=True)
    cancer = load_task("breast_cancer").bundled({})
    assert np.array_equal(cancer.x, x.astype(np.float32))
    assert np.array_equal(cancer.y, y)
    assert np.allclose(MEANS, x.mean(0), rtol=1e-3)
    assert np.allclose(DEVIATIONS, x.std(0), rtol=1e-3)


def test_the_mlp_has_about_103_thousand_parameters() -> None:
    spec = load_task("digits").model_spec({"model": "mlp"})
    assert 100_000 < sum(t.elements for t in spec.tensors) < 106_000


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_the_same_seed_gives_the_same_bytes(
    name: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    workload, base = _open(name, parameters, tmp_path)
    refs = [
        workload.train(base=base, out=tmp_path / f"u{i}", training=TRAINING, seed=seed).update
        for i, seed in enumerate((5, 5, 6))
    ]
    assert refs[0] == refs[1] != refs[2]


def test_an_update_holds_float_tensors_only(tmp_path: Path) -> None:
    workload, base = _open("digits", {"model": "cnn_bn"}, tmp_path)
    workload.train(base=base, out=tmp_path / "u", training=TRAINING, seed=1)
    update = read_arrays(tmp_path / "u")
    integers = [t.name for t in workload.spec.tensors if not t.is_float]
    assert integers
    assert set(update) == {t.name for t in workload.spec.tensors} - set(integers)


def test_training_learns_and_evaluation_sees_it(tmp_path: Path) -> None:
    workload, base = _open("digits", {"model": "mlp"}, tmp_path)
    training = dataclasses.replace(TRAINING, local_epochs=20)
    outcome = workload.train(base=base, out=tmp_path / "u", training=training, seed=1)
    assert outcome.metrics["accuracy"] > 0.8
    assert workload.evaluate(base=base).metrics["accuracy"] < 0.4  # of the base, unmoved


def test_a_large_proximal_term_holds_the_model_near_its_base(tmp_path: Path) -> None:
    workload, base = _open("digits", {"model": "mlp"}, tmp_path)
    norms = []
    for mu in (0.0, 1.0):
        training = dataclasses.replace(TRAINING, proximal_mu=mu, momentum=0.0, local_epochs=5)
        workload.train(base=base, out=tmp_path / "u", training=training, seed=1)
        norms.append(sum(float((a**2).sum()) for a in read_arrays(tmp_path / "u").values()))
    assert norms[1] < 0.9 * norms[0]


def test_max_steps_caps_the_work(tmp_path: Path) -> None:
    workload, base = _open("digits", {"model": "mlp"}, tmp_path)
    training = dataclasses.replace(TRAINING, max_steps=2)
    outcome = workload.train(base=base, out=tmp_path / "u", training=training, seed=1)
    assert outcome.examples == 32


def test_a_base_of_another_model_is_refused(tmp_path: Path) -> None:
    workload, _ = _open("digits", {"model": "mlp"}, tmp_path)
    other = tmp_path / "other"
    load_task("digits").write_initial({"model": "cnn"}, 1, other)
    with pytest.raises(ModelMismatchError):
        workload.evaluate(base=other)


def test_echo_sends_the_size_asked_for_and_no_two_alike(tmp_path: Path) -> None:
    task = load_task("echo")
    parameters = {"megabytes": 2}
    base = tmp_path / "base"
    assert abs(task.write_initial(parameters, 1, base).bytes - 2_000_000) < 4096
    workload = task.open(parameters, None, "cpu")
    refs = {
        workload.train(base=base, out=tmp_path / "u", training=TRAINING, seed=s).update.digest
        for s in (1, 2, 3)
    }
    assert len(refs) == 3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("digits", {"model": "x"}), ("digits", {}), ("echo", {"megabytes": 0})],
)
def test_parameters_out_of_the_schema(name: str, parameters: dict[str, object]) -> None:
    with pytest.raises(ValueRangeError, match="task"):
        load_task(name).check(parameters)


TABLE_MISTAKES = [
    ("numeric", "", "task.numeric.*at least one column", {"categorical": ""}),
    ("numeric", "age", "task.numeric=age: expected name:centre:scale", {}),
    ("numeric", "age:x:1", "two numbers", {}),
    ("numeric", "age:0:0", "scale from 1e-12", {}),
    ("numeric", "age:nan:1", "centre within 1e12", {}),
    ("numeric", "age:1:1,age:2:2", "age: expected each column once", {}),
    ("numeric", "sex:1:1", "task=sex: expected each column once", {}),
    ("numeric", "outcome:1:1", "task=outcome: expected each column once", {}),
    ("numeric", "../x:1:1", "name:centre:scale", {}),
    ("numeric", ",".join(f"c{i}:0:1" for i in range(600)), "at most 512", {}),
    ("numeric", "a" * 70_000, "a text of the form", {}),
    ("categorical", "sex:f|f", "each category once", {}),
    ("categorical", "sex:", "1 to 64 characters", {}),
    ("categorical", "sex: f|m", "no space at either end", {}),
    ("categorical", "sex:" + "|".join(map(str, range(2000))), "at most 1000 categories", {}),
    ("label", "outcome:0", "at least two classes", {}),
    ("label", "outcome:0|1", "name:centre:scale", {"kind": "regression"}),
    ("label", 3, "a text of the form", {}),
    ("model", "forest", "one of linear, mlp", {}),
    ("hidden", 0, "a whole number from 1", {}),
]


@pytest.mark.parametrize(("key", "value", "said", "others"), TABLE_MISTAKES)
def test_columns_that_cannot_be(key: str, value: Any, said: str, others: dict[str, Any]) -> None:
    with pytest.raises(ValueRangeError, match=said) as caught:
        load_task("tabular").check(written("tabular", **{**others, key: value}))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sensors", "", "at least one sensor"),
        ("order", "a b", "task.order"),
        ("order", "pressure", "task=pressure: expected each column once"),
        ("window", 7, "a whole number from 8"),
        ("sensors", ",".join(f"c{i}:0:1" for i in range(512)), "readings a window"),
    ],
)
def test_windows_that_cannot_be(key: str, value: Any, said: str) -> None:
    changed = {"window": 4096, key: value}
    with pytest.raises(ValueRangeError, match=said):
        load_task("timeseries").check(written("timeseries", **changed))


@pytest.mark.parametrize(("name", "parameters"), CASES[4:])
def test_generated_data_can_be_learnt(
    name: str, parameters: dict[str, Any], tmp_path: Path
) -> None:
    """Half of the units to train on: the other half is predicted better than by a constant."""
    task = load_task(name)
    whole = task.bundled(parameters)
    unit = np.arange(len(whole)) if whole.unit is None else whole.unit
    sides = [np.flatnonzero(unit % 2 == side) for side in (0, 1)]
    data = SiteData(train=whole.take(sides[0]), test=whole.take(sides[1]))
    base = tmp_path / "base"
    task.write_initial(parameters, 1, base)
    workload = task.open(parameters, data, "cpu")
    torch.set_num_threads(1)
    training = dataclasses.replace(TRAINING, local_epochs=3, lr=0.05, batch_size=32)
    out = tmp_path / "update"
    workload.train(base=base, out=out, training=training, seed=1)
    arrays, delta = read_arrays(base), read_arrays(out)
    trained = tmp_path / "trained"
    write_arrays(trained, {key: array + delta[key] for key, array in arrays.items()})
    metrics = workload.evaluate(base=trained).metrics
    y = data.test.y
    if parameters["kind"] == "regression":
        assert set(metrics) == {"loss", "mae"}
        assert metrics["loss"] < 0.6 * float(y.var())
    else:
        assert set(metrics) == {"loss", "accuracy"}
        assert metrics["accuracy"] > 0.1 + float(np.bincount(y).max() / len(y))


def test_scaling_is_declared_and_travels_in_no_model() -> None:
    """The same model for other constants; another output for the same features."""
    task = load_task("tabular")
    one, other = (written("tabular", numeric=f"age:{c}:20") for c in (50, 0))
    assert task.model_spec(one) == task.model_spec(other)
    networks = []
    for parameters in (one, other):
        torch.manual_seed(1)
        networks.append(task.network(parameters))
    x = torch.tensor([[50.0, 0.0, 0.0]])
    inputs = [network[0](x) for network in networks]
    assert inputs[0].tolist() == [[0.0, 1, 0, 1, 0, 0]]
    assert inputs[1].tolist() == [[2.5, 1, 0, 1, 0, 0]]


def test_windows_of_rows() -> None:
    """In order within a unit, none across two; a label is its last row's."""
    order = np.array([3.0, 1, 2, 1, 2, 4, 1])
    unit = np.array([7, 7, 7, 2, 2, 7, 5])
    rows = Examples(x=np.c_[order * 10 + unit].astype(np.float32), y=np.arange(7), unit=unit)
    found = windows_of(rows, order, Windows(order="t", length=2, stride=1))
    assert found.x[:, 0].tolist() == [[12, 22], [17, 27], [27, 37], [37, 47]]
    assert found.y.tolist() == [4, 2, 0, 5]
    assert found.unit.tolist() == [2, 7, 7, 7]
    assert len(windows_of(rows, order, Windows(order="t", length=5, stride=1))) == 0
    thinned = windows_of(rows, order, Windows(order="t", length=2, stride=2))
    assert thinned.x[:, 0].tolist() == [[12, 22], [17, 27], [37, 47]]


def test_arrays_that_outgrow_memory_rest_on_disk() -> None:
    pieces = [np.random.default_rng(i).random((100, 3)) for i in range(10)]
    for bound, on_disk in ((1 << 20, False), (5000, True), (1, True)):
        growing = Growing(bound)
        for piece in pieces:
            growing.append(piece)
        assert len(growing) == 1000
        found = growing.finish()
        assert np.array_equal(found, np.concatenate(pieces))
        assert isinstance(found.base, np.memmap) == on_disk
        found[0] = 1  # its own, and nobody else's


def test_a_full_temporary_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr("tempfile.TemporaryFile", lambda: full)
        growing = Growing(10)
        with pytest.raises(EnvironmentFailedError, match=r"No space left on device.*TMPDIR"):
            growing.append(np.zeros(100))


def test_a_network_without_data_and_a_task_without_a_set_of_its_own() -> None:
    with pytest.raises(DataError, match="works on data, and the site names none"):
        load_task("digits").open(MLP, None, "cpu")
    with pytest.raises(DataError, match="task 'echo' comes with no data"):
        load_task("echo").bundled({"megabytes": 1})


def test_unknown_task() -> None:
    with pytest.raises(UnknownNameError, match="digits"):
        load_task("digit")
