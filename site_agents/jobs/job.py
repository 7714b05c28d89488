"""A job as files in a folder: `job.json` in, `result.json` and `update.safetensors` out.

The same folder serves a worker beside the agent and, on a shared file system, a batch job. Files
appear whole, by rename. A job names data by the
name that the site's own configuration gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.bounds import Count, Metrics, Seconds, Seed, UnixTime
from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.contracts.orders import Scalar, TrainParameters, WorkKey, WorkKind
from fedfactory.contracts.privacy import Measurement, Mechanism
from fedfactory.durable_file import write_in_one_piece
from fedfactory.tasks.rehearsal import Rehearsal

JOB: Final = "job.json"
RESULT: Final = "result.json"
UPDATE: Final = "update.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to do. `base` is the file of the verified base model, `source` the site's own data.

    Under differential privacy a `train` job carries the `mechanism` that was reserved for it, and
    an `evaluate` job its `measurement`. What is paid for is not begun after `begin_by` (Unix
    seconds) and, once begun, has all of its time; None: the time in which it waits counts, too.
    """

    kind: WorkKind
    task: str
    task_parameters: Mapping[str, Scalar]
    training: TrainParameters | None
    seed: Seed
    site: str
    round: Count
    base: str
    source: str | None
    mechanism: Mechanism | None
    measurement: Measurement | None
    begin_by: UnixTime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobTrial:
    """What to try, without data, before private work is paid for; as in Job.

    It waits for its device until `begin_by`, or for as long as it may take (None). `base` is None
    where the device alone is tried.
    """

    task: str
    task_parameters: Mapping[str, Scalar]
    base: str | None
    rehearsal: Rehearsal
    begin_by: UnixTime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What came of it. `failure` is a key of REFUSALS, or None.

    `declared` is the spec of the task's own model, against which the guard holds the update file,
    whose digest and length are `update` (None for `evaluate`).
    """

    failure: str | None
    examples: Count | None
    metrics: Metrics
    seconds: Seconds
    declared: ModelSpec | None
    update: BlobRef | None


def job_folder(spool: Path, key: WorkKey) -> Path:
    """Return the folder of a unit of work."""
    return spool / folder_name(key.round, key.kind, key.order_digest)


def folder_name(number: int, kind: WorkKind, order_digest: str) -> str:
    """Return the name of the folder of a unit of work, of round `number`."""
    return f"{number:06d}-{kind}-{order_digest.removeprefix('sha256:')[:16]}"


def write_file(path: Path, value: Any) -> None:
    """Write a value as JSON, 0600, in one piece."""
    write_in_one_piece(path, to_json(value))


def read_job(folder: Path) -> Job:
    """Read the job of a folder."""
    return from_json(Job, (folder / JOB).read_text())


def read_result(folder: Path) -> JobResult:
    """Read the result of a folder."""
    return from_json(JobResult, (folder / RESULT).read_text())
