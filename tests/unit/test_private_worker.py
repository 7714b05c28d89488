"""A private job in a real worker: nothing of a record in its answers, files, log or errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedfactory.contracts.privacy import Measurement
from fedfactory.privacy.chacha import NoiseSource
from fedfactory.tasks import objectives
from fedfactory.tasks.objectives import CLASSIFICATION
from fedfactory.tasks.table import load_task
from fedfactory.wire.arrays import read_arrays
from site_agents.jobs.job import JOB, UPDATE, Job, JobResult, read_result, write_file
from site_agents.jobs.settings import SourceOptions, WorkerSettings
from site_agents.worker.work import Worker
from tests.private_descents import mechanism, training

PARAMETERS = {"model": "mlp"}
MARKER = 0.6180339  # in the features of every record
MEASUREMENT = Measurement(noise_multiplier=1.0, loss_clip=5.0, public_examples=40)


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    examples = load_task("digits").bundled(PARAMETERS)
    x = examples.x[:200].copy()
    x[:, ::7] = MARKER
    np.savez(tmp_path / "own.npz", x=x, y=examples.y[:200])
    options = {"kind": "npz", "path": str(tmp_path / "own.npz")}
    sources = {"own": SourceOptions(options=options, lineage="people", unit="row")}
    settings = WorkerSettings(site="lumi", sources=sources, threads=1, device="cpu")
    made = Worker(settings)
    made.describe("own", "digits", PARAMETERS)
    load_task("digits").write_initial(PARAMETERS, 1, tmp_path / "base")
    return made


@pytest.fixture
def ask(worker: Worker, tmp_path: Path) -> Callable[..., tuple[JobResult, Path]]:
    def asked(name: str, **changes: Any) -> tuple[JobResult, Path]:
        folder = tmp_path / "jobs" / name
        folder.mkdir(parents=True)
        job = Job(
            kind="train",
            task="digits",
            task_parameters=PARAMETERS,
            training=training(),
            seed=1,
            site="lumi",
            round=1,
            base=str(tmp_path / "base"),
            source="own",
            mechanism=mechanism(),
            measurement=None,
        )
        write_file(folder / JOB, replace(job, **changes))
        worker.work(folder)
        return read_result(folder), folder

    return asked


def marks(found: bytes) -> bool:
    forms = [f"{np.float32(MARKER)}"[:8].encode(), f"{np.float64(np.float32(MARKER))}"[:8].encode()]
    forms += [np.float32(MARKER).tobytes(), np.float64(np.float32(MARKER)).tobytes()]
    return any(form in found for form in forms)


def test_jobs_of_a_seed_repeat_without_privacy_and_never_with_it(
    ask: Callable[..., tuple[JobResult, Path]],
) -> None:
    plain = [ask(f"plain{i}", mechanism=None)[0].update for i in (1, 2)]
    assert plain[0] == plain[1]
    private = [read_arrays(ask(f"private{i}")[1] / UPDATE) for i in (1, 2)]
    for name, array in private[0].items():
        assert float((array == private[1][name]).mean()) < 1e-2


def test_a_private_job_answers_with_an_update_and_no_metric(
    ask: Callable[..., tuple[JobResult, Path]],
) -> None:
    result, _ = ask("train")
    assert result.failure is None
    assert result.metrics == {}
    assert result.update


def test_a_private_evaluation_answers_with_noised_figures(
    ask: Callable[..., tuple[JobResult, Path]],
) -> None:
    answers = [
        ask(f"e{i}", kind="evaluate", training=None, mechanism=None, measurement=MEASUREMENT)[0]
        for i in (1, 2)
    ]
    assert [set(a.metrics) for a in answers] == [{"loss", "accuracy"}] * 2
    assert answers[0].metrics["loss"] != answers[1].metrics["loss"]


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_nothing_of_a_record_in_what_a_job_leaves(
    ask: Callable[..., tuple[JobResult, Path]],
    mode: Any,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    ask("train", mechanism=mechanism(grad_sample_mode=mode))
    ask("measure", kind="evaluate", training=None, mechanism=None, measurement=MEASUREMENT)
    assert marks((tmp_path / "own.npz").read_bytes()), "the search finds what is there"
    assert not any(marks(f.read_bytes()) for f in (tmp_path / "jobs").rglob("*") if f.is_file())
    assert not marks(caplog.text.encode())


@pytest.mark.parametrize("broken", ["losses", "scores", "noise"])
def test_nothing_of_a_record_when_a_step_fails(
    ask: Callable[..., tuple[JobResult, Path]],
    broken: str,
    *,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Each step fails with the records in its message, as libraries' errors do."""
    caplog.set_level(logging.DEBUG)
    records = np.load(tmp_path / "own.npz")["x"]

    def fail(*_: Any) -> Any:
        raise ValueError(f"cannot do this with {records.tolist()}")

    if broken == "noise":
        monkeypatch.setattr(NoiseSource, "fill_gaussians", fail)
    else:
        failing = replace(CLASSIFICATION, **{broken: fail})
        monkeypatch.setattr(objectives, "CLASSIFICATION", failing)
    measure = {"kind": "evaluate", "training": None, "mechanism": None, "measurement": MEASUREMENT}
    result, folder = ask("broken", **(measure if broken == "scores" else {}))
    assert result.failure == "work_failed"
    assert result.update is None
    assert result.examples is None
    assert not (folder / UPDATE).exists()
    out, err = capfd.readouterr()
    assert "ValueError" in caplog.text
    assert not marks(caplog.text.encode() + out.encode() + err.encode())
    assert not any(marks(f.read_bytes()) for f in (tmp_path / "jobs").rglob("*") if f.is_file())


def test_a_base_that_is_not_finite_gives_noise_and_says_nothing(
    ask: Callable[..., tuple[JobResult, Path]], tmp_path: Path
) -> None:
    """A lying coordinator's model overflows for some records: the answer is the same as for none."""
    from fedfactory.wire.arrays import write_arrays

    arrays = read_arrays(tmp_path / "base")
    arrays["0.weight"] = np.full_like(arrays["0.weight"], 3e38)
    write_arrays(tmp_path / "hostile", arrays)
    result, folder = ask("hostile", base=str(tmp_path / "hostile"))
    assert result.failure is None
    update = read_arrays(folder / UPDATE)
    assert all(np.isfinite(array).all() for array in update.values())
    assert torch.from_numpy(update["4.weight"]).std() == pytest.approx(1.0, rel=0.2)
