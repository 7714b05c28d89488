"""Measuring models on a public set: a real process, bad models, bad sets, deaths; and warm starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfactory.contracts.errors import DataError, EnvironmentFailedError, UsageError
from fedfactory.coordinator.running import central
from fedfactory.coordinator.running.central import CentralEvaluator, MeasuringError
from fedfactory.tasks.digits import Digits
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.model_jobs import adopt_model, main
from fedfactory.tasks.public_set import read_public
from fedfactory.wire.arrays import file_ref, read_arrays, write_arrays
from tests.owned_processes import runs
from tests.patience import HANG_S, until

MLP = {"model": "mlp"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits, one of another form, and a public set of 300 digits."""
    folder = tmp_path_factory.mktemp("central")
    Digits().write_initial(MLP, 1, folder / "model")
    Digits().write_initial({"model": "cnn"}, 1, folder / "cnn")
    examples = Digits().bundled({}).take(np.arange(300))
    np.savez(folder / "public.npz", x=examples.x, y=examples.y)
    return folder


@pytest.fixture
def evaluator(folder: Path) -> Iterator[CentralEvaluator]:
    with CentralEvaluator("digits", MLP, folder / "public.npz") as evaluator:
        yield evaluator


def test_it_gives_what_the_task_gives_every_time(folder: Path, evaluator: CentralEvaluator) -> None:
    first = evaluator.measure(folder / "model")
    examples = read_public(folder / "public.npz", Digits(), MLP)
    workload = Digits().open(MLP, SiteData(train=examples, test=examples), "cpu")
    expected = workload.evaluate(base=folder / "model").metrics
    assert first.keys() == {"loss", "accuracy"}
    assert first == pytest.approx(expected)
    assert [evaluator.measure(folder / "model") for _ in range(3)] == [first] * 3
    with CentralEvaluator("digits", MLP, folder / "public.npz") as another:
        assert another.measure(folder / "model") == first


def test_a_bad_model_is_told_and_survived(
    folder: Path, evaluator: CentralEvaluator, tmp_path: Path
) -> None:
    expected, pid = evaluator.measure(folder / "model"), evaluator.pid
    model = read_arrays(folder / "model")
    write_arrays(tmp_path / "nan", {name: array * np.nan for name, array in model.items()})
    (tmp_path / "cut").write_bytes((folder / "model").read_bytes()[:-1])
    (tmp_path / "empty").touch()
    for name, words in {
        "nan": "'loss' is not finite",
        "cut": "measured: cut",
        "empty": "truncated",
        "nothing": "No such file",
        str(folder / "cnn"): "does not fit the task",
    }.items():
        with pytest.raises(MeasuringError, match=words):
            evaluator.measure(tmp_path / name)
    assert evaluator.measure(folder / "model") == expected
    assert evaluator.pid == pid


def test_a_killed_and_a_frozen_process_are_replaced(
    folder: Path, evaluator: CentralEvaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, first = evaluator.measure(folder / "model"), evaluator.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert evaluator.measure(folder / "model") == expected
    second = evaluator.pid
    assert second is not None
    os.kill(second, signal.SIGSTOP)
    monkeypatch.setattr(central, "SILENCE_S", 5.0)
    assert evaluator.measure(folder / "model") == expected
    assert len({first, second, evaluator.pid}) == 3


def test_a_process_that_never_lives_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        CentralEvaluator("digits", MLP, folder / "public.npz") as evaluator,
        pytest.raises(EnvironmentFailedError, match="3 times"),
    ):
        evaluator.measure(folder / "model")


def test_closing_gives_up_what_another_thread_measures(
    folder: Path, evaluator: CentralEvaluator
) -> None:
    evaluator.measure(folder / "model")
    pid = evaluator.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # an answer that would never come
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(evaluator.measure, folder / "model")
        while not evaluator._busy.locked():
            time.sleep(0.01)
        evaluator.close()
        with pytest.raises(MeasuringError, match="closing"):
            answer.result(timeout=HANG_S)
    assert not runs(pid)
    assert evaluator.pid is None


def test_it_dies_with_its_parent(folder: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path;"
        "from fedfactory.coordinator.running.central import CentralEvaluator;"
        "e = CentralEvaluator('digits', {'model': 'mlp'}, Path(sys.argv[1]));"
        "e.measure(Path(sys.argv[2])); print(e.pid, flush=True); time.sleep(600)"
    )
    arguments = (str(folder / "public.npz"), str(folder / "model"))
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    until(lambda: not runs(child), 10)


def test_the_coordinators_own_process_imports_no_torch() -> None:
    code = "import sys, fedfactory.coordinator.running.central; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((2, 64), np.float32)}, "plain arrays x and y"),
        ({"x": np.array([{}], dtype=object), "y": np.zeros(1)}, "plain arrays x and y"),
        ({"x": np.zeros((0, 64), np.float32), "y": np.zeros(0, np.int64)}, "at least one"),
        ({"x": np.zeros((2, 64), np.float32), "y": np.full(2, 10)}, "outside 0 to 9 in 2 of 2"),
        ({"x": np.full((2, 64), 7.0), "y": np.zeros(2, np.int64)}, "outside 0 to 1"),
    ],
)
def test_a_bad_set_is_told(
    folder: Path, tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with (
        CentralEvaluator("digits", MLP, tmp_path / "bad.npz") as evaluator,
        pytest.raises(DataError, match=words),
    ):
        evaluator.measure(folder / "model")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x93NUMPY", b"text"])
def test_a_file_that_is_no_npz(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match="not a whole NPZ"):
        read_public(tmp_path / "set.npz", Digits(), MLP)
    with (tmp_path / "set.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="not a whole NPZ"):
        read_public(tmp_path / "set.npz", Digits(), MLP)


def test_the_documented_way_to_a_public_set(tmp_path: Path) -> None:
    (line,) = (
        line.strip()
        for line in (Path(__file__).parents[2] / "docs/researcher.md").read_text().splitlines()
        if "numpy.savez" in line and "bundled" in line
    )
    subprocess.run(line.replace("python", sys.executable, 1), shell=True, check=True, cwd=tmp_path)
    (made,) = tmp_path.iterdir()
    assert len(read_public(made, Digits(), MLP)) == 1797


class TestWarmStart:
    def test_a_fitting_model_becomes_the_initial_one(self, folder: Path, tmp_path: Path) -> None:
        ref = adopt_model("digits", MLP, folder / "model", tmp_path / "out")
        assert ref == file_ref(folder / "model") == file_ref(tmp_path / "out")

    def test_another_tools_file_gets_our_form(self, folder: Path, tmp_path: Path) -> None:
        from safetensors.numpy import save_file

        save_file(read_arrays(folder / "model"), tmp_path / "model", metadata={"format": "pt"})
        ref = adopt_model("digits", MLP, tmp_path / "model", tmp_path / "out")
        assert ref == file_ref(folder / "model")

    def test_the_first_difference_is_named(self, folder: Path, tmp_path: Path) -> None:
        model = read_arrays(folder / "model")
        name = min(model)
        for changed, words in (
            ({k: v for k, v in model.items() if k != name}, f"'{name}' is missing"),
            ({**model, name: model[name][:-1]}, f"'{name}' has shape"),
            ({**model, name: model[name].astype(np.float64)}, f"'{name}' has dtype F64"),
            ({**model, "zusatz": model[name]}, "'zusatz' is not part of the model"),
            ({**model, name: model[name] * np.inf}, f"'{name}' holds NaN"),
        ):
            write_arrays(tmp_path / "other", changed)
            with pytest.raises(UsageError, match=words):
                adopt_model("digits", MLP, tmp_path / "other", tmp_path / "out")
        (tmp_path / "other").write_bytes(b"no model")
        with pytest.raises(DataError, match="no model file"):
            adopt_model("digits", MLP, tmp_path / "other", tmp_path / "out")
        with pytest.raises(DataError, match="cannot be read"):
            adopt_model("digits", MLP, tmp_path / "nothing", tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))

    def test_the_job(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        common = ["init", "--task", "digits", "--parameters", '{"model": "mlp"}']
        out = str(tmp_path / "out")
        assert main([*common, "--from", str(folder / "model"), "--out", out]) == 0
        assert main([*common, "--seed", "1", "--out", out]) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert first == second
        assert main([*common, "--from", str(folder / "cnn"), "--out", out]) == 2
        assert "not a model of task 'digits'" in capsys.readouterr().err
