"""The worker: sources by name, described again when they change, jobs of every kind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfactory.contracts.errors import DataError, UsageError
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import Measurement, Mechanism
from fedfactory.tasks.table import load_task
from site_agents.data.generation import generate, write_table
from site_agents.jobs.job import JOB, UPDATE, Job, JobResult, read_result, write_file
from site_agents.jobs.settings import SourceOptions, WorkerSettings
from site_agents.worker.work import HELD, Worker

MLP = {"model": "mlp"}
TABULAR = {
    "kind": "classification",
    "label": "outcome:0|1",
    "numeric": "age:50:20,bmi:25:5",
    "categorical": "sex:f|m",
    "model": "linear",
    "hidden": 1,
}
TRAINING = TrainParameters(
    local_epochs=1, batch_size=32, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)
MECHANISM = Mechanism(
    noise_multiplier=1.0,
    sample_rate=0.2,
    steps=3,
    expected_batch=40.0,
    clip_norm_l2=1.0,
    grad_sample_mode="hooks",
)
MEASUREMENT = Measurement(noise_multiplier=1.0, loss_clip=4.0, public_examples=50)


def digits(path: Path, count: int = 250, seed: int = 1, **more: Any) -> None:
    generator = np.random.default_rng(seed)
    x = generator.random((count, 64)).astype(np.float32)
    np.savez(path, x=x, y=generator.integers(0, 10, count), **more)


def worker(device: str = "cpu", **sources: Any) -> Worker:
    named = {
        name: SourceOptions(options=o, lineage=name, unit=o.get("unit") or "row")
        for name, o in sources.items()
    }
    return Worker(WorkerSettings(site="cesga", sources=named, threads=1, device=device))


def job(folder: Path, **changed: Any) -> Path:
    """Write a job on data 'scans', and its base; return its folder."""
    folder.mkdir()
    base = folder / "base"
    load_task("digits").write_initial(MLP, 1, base)
    values: dict[str, Any] = {
        "kind": "train",
        "task": "digits",
        "task_parameters": MLP,
        "training": TRAINING,
        "seed": 1,
        "site": "cesga",
        "round": 1,
        "base": str(base),
        "source": "scans",
        "mechanism": None,
        "measurement": None,
    }
    write_file(folder / JOB, Job(**(values | changed)))
    return folder


def done(one: Worker, folder: Path) -> JobResult:
    one.work(folder)
    return read_result(folder)


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, Any]:
    digits(tmp_path / "scans.npz")
    return {"kind": "npz", "path": str(tmp_path / "scans.npz")}


def test_the_four_kinds_of_work(scans: dict[str, Any], tmp_path: Path) -> None:
    one = worker(scans=scans)
    facts = one.describe("scans", "digits", MLP)
    assert facts.train + facts.evaluate == 250
    result = done(one, job(tmp_path / "1"))
    assert (result.failure, result.examples) == (None, facts.train)
    assert set(result.metrics) == {"loss", "accuracy"}
    assert result.update is not None
    assert (tmp_path / "1" / UPDATE).stat().st_size == result.update.bytes
    assert done(one, job(tmp_path / "2")).update == result.update

    result = done(one, job(tmp_path / "3", kind="evaluate", training=None))
    assert (result.failure, result.examples, result.update) == (None, facts.evaluate, None)

    private = [done(one, job(tmp_path / f"p{i}", mechanism=MECHANISM)) for i in range(2)]
    assert [r.failure for r in private] == [None, None]
    assert [dict(r.metrics) for r in private] == [{}, {}]
    assert private[0].update != private[1].update  # noise is drawn anew

    measured = [
        done(one, job(tmp_path / f"m{i}", kind="evaluate", training=None, measurement=MEASUREMENT))
        for i in range(2)
    ]
    assert [r.failure for r in measured] == [None, None]
    assert measured[0].metrics != measured[1].metrics


def test_the_same_work_from_a_fresh_worker_gives_the_same_bytes(
    scans: dict[str, Any], tmp_path: Path
) -> None:
    first, second = (done(worker(scans=scans), job(tmp_path / n)).update for n in ("1", "2"))
    assert first == second


def test_a_change_is_noticed_said_and_read(
    scans: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = worker(scans=scans)
    with caplog.at_level(logging.INFO):
        before = one.describe("scans", "digits", MLP)
        assert one.describe("scans", "digits", MLP) == before
        update = done(one, job(tmp_path / "1")).update
        digits(tmp_path / "scans.npz", 350, 2)
        after = one.describe("scans", "digits", MLP)
    assert after.fingerprint != before.fingerprint
    assert after.train + after.evaluate == 350
    assert done(one, job(tmp_path / "2")).update != update
    said = [record.getMessage() for record in caplog.records if "scans" in record.getMessage()]
    assert len(said) == 2
    assert "seen for the first time" in said[0]
    assert "changed" in said[1]


def test_rows_added_to_a_table_are_said_to_be_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.csv"
    write_table(generate("tabular", TABULAR, 100, 1), path)
    one = worker(own={"kind": "csv", "path": str(path)})
    one.describe("own", "tabular", TABULAR)
    with path.open("a") as file:
        file.write("50,25,f,1\n")
    with caplog.at_level(logging.INFO):
        facts = one.describe("own", "tabular", TABULAR)
    assert facts.train + facts.evaluate == 101
    assert "appended to: 10 bytes more" in caplog.text


def test_data_that_change_while_they_are_read(
    scans: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from site_agents.data.npz import Npz

    load = Npz.load

    def load_slowly(self: Npz, *asked: Any) -> Any:
        data = load(self, *asked)
        digits(tmp_path / "scans.npz", 300, 3)
        return data

    one = worker(scans=scans)
    with monkeypatch.context() as patch:
        patch.setattr(Npz, "load", load_slowly)
        with pytest.raises(DataError, match="'scans' changed while it was read"):
            one.describe("scans", "digits", MLP)
    facts = one.describe("scans", "digits", MLP)
    assert facts.train + facts.evaluate == 300


@pytest.mark.parametrize(("read", "ruled"), [("patient", "row"), (None, "patient")])
def test_data_read_in_other_units_than_the_policy_says_are_refused(
    tmp_path: Path, read: str | None, ruled: str
) -> None:
    digits(tmp_path / "own.npz", 250, 1, patient=np.arange(250) // 2)
    options = {"kind": "npz", "path": str(tmp_path / "own.npz"), "unit": read}
    named = {"own": SourceOptions(options=options, lineage="own", unit=ruled)}
    one = Worker(WorkerSettings(site="cesga", sources=named, threads=1, device="cpu"))
    with pytest.raises(DataError, match=f"policy.yaml says unit: {ruled}"):
        one.describe("own", "digits", MLP)
    assert one.work(job(tmp_path / "job", source="own")) is None
    assert read_result(tmp_path / "job").failure == "work_failed"


def test_what_cannot_be_described(scans: dict[str, Any], tmp_path: Path) -> None:
    one = worker(
        scans=scans, gone={"kind": "npz", "path": str(tmp_path / "gone")}, odd={"kind": "x"}
    )
    with pytest.raises(DataError, match="no data 'others'"):
        one.describe("others", "digits", MLP)
    with pytest.raises(DataError, match="there is no such file"):
        one.describe("gone", "digits", MLP)
    with pytest.raises(UsageError, match="unknown kind of data source 'x'"):
        one.describe("odd", "digits", MLP)
    with pytest.raises(DataError, match=r"expected \(examples, 30\)"):
        one.describe("scans", "breast_cancer", {})


def test_a_failure_is_one_code_and_its_log_holds_no_value(
    scans: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = "Q7planted-marker"
    np.savez(tmp_path / "scans.npz", x=np.zeros((50, 64)), y=np.array([marker] * 50))
    with caplog.at_level(logging.DEBUG):
        result = done(worker(scans=scans), job(tmp_path / "1"))
    assert result.failure == "work_failed"
    assert marker not in (tmp_path / "1" / "result.json").read_text()
    assert marker not in caplog.text
    assert "DataError" in caplog.text


def test_a_base_of_another_model(scans: dict[str, Any], tmp_path: Path) -> None:
    folder = job(tmp_path / "1")
    load_task("digits").write_initial({"model": "cnn"}, 1, folder / "base")
    assert done(worker(scans=scans), folder).failure == "bad_model"


def test_a_task_without_data(tmp_path: Path) -> None:
    parameters = {"megabytes": 1}
    folder = job(tmp_path / "1", task="echo", task_parameters=parameters, source=None)
    load_task("echo").write_initial(parameters, 1, folder / "base")
    assert done(worker(), folder).failure is None


def test_a_device_that_is_not_there(scans: dict[str, Any], tmp_path: Path) -> None:
    result = done(worker("cuda:99", scans=scans), job(tmp_path / "1"))
    assert result.failure == "work_failed"


def test_what_is_held_is_bounded(tmp_path: Path) -> None:
    """A coordinator may vary parameters within the policy's ranges."""
    path = tmp_path / "own.csv"
    write_table(generate("tabular", TABULAR, 100, 1), path)
    one = worker(own={"kind": "csv", "path": str(path)})
    for age in range(HELD + 3):
        one.describe("own", "tabular", TABULAR | {"numeric": f"age:{age}:20,bmi:25:5"})
    assert len(one._data._values) == HELD
    before = list(one._data._values)
    for hidden in range(1, 5):  # of the model alone: the data stay
        parameters = TABULAR | {"numeric": f"age:{HELD + 2}:20,bmi:25:5", "hidden": hidden}
        one.describe("own", "tabular", parameters)
    assert list(one._data._values) == before
