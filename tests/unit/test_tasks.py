"""Tasks: bundled data, sizes, reproducible bytes, what an update holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fedfactory.contracts.errors import UnknownNameError, ValueRangeError
from fedfactory.contracts.orders import TrainParameters
from fedfactory.tasks.breast_cancer import DEVIATIONS, MEANS
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import ModelMismatchError, Workload
from fedfactory.wire.arrays import read_arrays

TRAINING = TrainParameters(
    local_epochs=1, batch_size=16, lr=0.1, momentum=0.9, proximal_mu=0.0, max_steps=None
)
CASES = [
    ("digits", {"model": "mlp"}),
    ("digits", {"model": "cnn"}),
    ("digits", {"model": "cnn_bn"}),
    ("breast_cancer", {}),
]


def _open(name: str, parameters: dict[str, str], folder: Path) -> tuple[Workload, Path]:
    task = load_task(name)
    examples = task.bundled()
    data = SiteData(train=examples.take(np.arange(100)), test=examples.take(np.arange(100, 150)))
    base = folder / "base"
    task.write_initial(parameters, 1, base)
    return task.open(parameters, data, "cpu"), base


def test_bundled_data_are_scikit_learns() -> None:
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    digits = load_task("digits").bundled()
    assert np.array_equal(digits.x * 16, x.astype(np.float32))
    assert np.array_equal(digits.y, y)
    x, y = datasets.load_breast_cancer(return_X_y=True)
    cancer = load_task("breast_cancer").bundled()
    assert np.array_equal(cancer.x, x.astype(np.float32))
    assert np.array_equal(cancer.y, y)
    assert np.allclose(MEANS, x.mean(0), rtol=1e-3)
    assert np.allclose(DEVIATIONS, x.std(0), rtol=1e-3)


def test_the_mlp_has_about_103_thousand_parameters() -> None:
    spec = load_task("digits").model_spec({"model": "mlp"})
    assert 100_000 < sum(t.elements for t in spec.tensors) < 106_000


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_the_same_seed_gives_the_same_bytes(
    name: str, parameters: dict[str, str], tmp_path: Path
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


def test_unknown_task() -> None:
    with pytest.raises(UnknownNameError, match="digits"):
        load_task("digit")
