"""What a run starts from: its first model, and the public set it is measured on.

The first model is made here by a process that imports torch, or is a file, or is another run's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from fedfactory.config import RunConfig
from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import EnvironmentFailedError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.operator.naming import find_run
from fedfactory.wire.arrays import file_ref

if TYPE_CHECKING:
    from fedfactory.operator.client import OperatorClient

INITIAL: Final = "initial.safetensors"
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Starting(NamedTuple):
    """The arrays that a submission names; `central` is None where the run has no public set.

    `files` are those that the coordinator does not hold yet.
    """

    initial: BlobRef
    central: BlobRef | None
    files: Mapping[Path, BlobRef]

    def upload(self, client: OperatorClient) -> None:
        """Have the coordinator hold all of them."""
        for path, ref in self.files.items():
            client.upload(path, ref)


def starting_arrays(client: OperatorClient, config: RunConfig, scratch: Path) -> Starting:
    """Make or find a run's arrays; nothing is sent. `scratch` is a folder.

    Raises:
        UsageError: `model` is neither a file nor a run's model that is kept, or does not fit.
    """
    files: dict[Path, BlobRef] = {}
    central = None
    if config.central is not None:
        files[config.central] = central = file_ref(config.central)
    if config.model is not None and not Path(config.model).is_file():
        return Starting(_model_of_run(client, config.model), central, files)
    path = scratch / INITIAL
    files[path] = initial = made_model(make_initial_model(config, path))
    return Starting(initial, central, files)


def make_initial_model(config: RunConfig, out: Path) -> subprocess.Popen[bytes]:
    """Start the process that writes the first model to `out`: new, or from the file `model`.

    It imports torch; wait for it with `made_model`.
    """
    origin = ("--seed", str(config.seed)) if config.model is None else ("--from", config.model)
    parameters = json.dumps(dict(config.task_parameters))
    private = () if config.privacy is None else ("--private", config.privacy.grad_sample_mode)
    return _job(
        *("init", "--task", config.task_name, "--parameters", parameters, *origin),
        *("--out", str(out), *private),
    )


def made_model(job: subprocess.Popen[bytes]) -> BlobRef:
    """Wait for the job of `make_initial_model`; return the model's digest and length.

    Raises:
        UsageError: the file that it was to start from does not fit the task, or the task's network
            cannot be trained as the run's privacy demands.
        EnvironmentFailedError: the job failed; its last words are the diagnostic.
    """
    output, errors = job.communicate()
    told = errors.decode(errors="replace").strip()
    if job.returncode == UsageError.exit_code:
        raise UsageError(told)
    if job.returncode != 0:
        raise EnvironmentFailedError("the initial model could not be made", diagnostic=told)
    return from_json(BlobRef, output)


def _model_of_run(client: OperatorClient, name: str) -> BlobRef:
    """Return the model that RUN or RUN:ROUND names, which the coordinator holds already."""
    run, colon, number = name.partition(":")
    if colon and not number.isdigit():
        raise UsageError(f"model={name}: expected a safetensors file, RUN or RUN:ROUND")
    try:
        row = find_run(run, client.runs())
    except UsageError as error:
        raise UsageError(
            f"model={name}: there is no such file, and as a run: {error.public_message}"
        ) from error
    found = client.find_model(row.run_id, int(number) if colon else None)
    if found.model is None:
        kept = ", ".join(map(str, found.kept)) or "none"
        raise UsageError(f"model={name}: not kept; rounds of {row.run_id} that are: {kept}")
    return found.model


def _job(*words: str) -> subprocess.Popen[bytes]:
    command: Sequence[str] = (sys.executable, "-m", "fedfactory.tasks.model_jobs", *words)
    return subprocess.Popen(
        command,
        env={**os.environ, **dict.fromkeys(_THREADS, "1")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
