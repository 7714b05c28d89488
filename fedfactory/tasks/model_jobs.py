"""What a coordinator needs of a model without importing torch itself: processes that do it.

`python -m fedfactory.tasks.model_jobs init --task T --parameters JSON --out FILE` and `--seed N`
writes the initial model, or with `--from FILE` one to start warm from, once it fits the task; with
`--private MODE` only one that DP-SGD can train. It prints digest and length as JSON. `measure
--task T --parameters JSON --data FILE --parent PID` measures models on a public set (measuring.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import DataError, FedfactoryError, UsageError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Scalar
from fedfactory.contracts.privacy import GradSampleMode
from fedfactory.tasks.rehearsal import Rehearsal
from fedfactory.tasks.table import check_task
from fedfactory.tasks.task import ModelMismatchError, Task, UnstableKernelsError
from fedfactory.wire.arrays import ArrayFile, ArrayWriter, first_non_finite


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one job; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.job == "measure":
            from fedfactory.tasks.measuring import serve

            return serve(options.task, options.parameters, options.data, options.parent)
        task = check_task(options.task, options.parameters)
        if options.private is not None:
            check_trainable(task, options.parameters, options.private)
        if options.source is None:
            ref = task.write_initial(options.parameters, options.seed, options.out)
        else:
            ref = adopt_model(options.task, options.parameters, options.source, options.out)
    except FedfactoryError as error:
        sys.stderr.write(f"{error.public_message}\n")
        return error.exit_code
    sys.stdout.write(f"{to_json(ref)}\n")
    return 0


def check_trainable(task: Task, parameters: Mapping[str, Scalar], mode: GradSampleMode) -> None:
    """Try on two made-up records whether the task's network can be trained record by record.

    Raises:
        UsageError: it cannot; the layer or parameter that stands against it.
    """
    rehearsal = Rehearsal(kind="train", rows=2, grad_sample_mode=mode)
    try:
        task.rehearse(parameters, "cpu", rehearsal)
    except UnstableKernelsError:
        return  # of this machine: each site tries its own device
    except ModelMismatchError as error:
        raise UsageError(error.public_message) from error


def adopt_model(task: str, parameters: Mapping[str, Scalar], source: Path, out: Path) -> BlobRef:
    """Write the model in `source` to `out`, in our form, if it is a model of the task's.

    Raises:
        UsageError: it is no model file, another model's, or not finite; the first difference.
    """
    expected = check_task(task, parameters).model_spec(parameters)
    try:
        file = ArrayFile(source)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from error
    except FedfactoryError as error:
        raise DataError(f"{source}: no model file (safetensors): {error.public_message}") from error
    with file:
        if difference := expected.difference(file.spec):
            raise UsageError(f"{source}: not a model of task '{task}': {difference}")
        if bad := first_non_finite(file):
            raise UsageError(f"{source}: tensor '{bad}' holds NaN or infinity")
        writer = ArrayWriter(out, file.spec)
        try:
            for tensor in file.spec.tensors:
                for piece in file.chunks(tensor.name):
                    writer.write(piece)
        except BaseException:
            writer.abandon()
            raise
        return writer.commit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fedfactory.tasks.model_jobs")
    jobs = parser.add_subparsers(required=True, dest="job")
    init = jobs.add_parser("init", help="write a task's initial model")
    start = init.add_mutually_exclusive_group(required=True)
    start.add_argument("--seed", type=int)
    start.add_argument("--from", type=Path, dest="source")
    init.add_argument("--out", type=Path, required=True)
    init.add_argument("--private", metavar="MODE", choices=get_args(GradSampleMode))
    measure = jobs.add_parser("measure", help="measure models on a public set")
    measure.add_argument("--data", type=Path, required=True)
    measure.add_argument("--parent", type=int, required=True)
    for job in (init, measure):
        job.add_argument("--task", required=True)
        job.add_argument("--parameters", type=json.loads, required=True)
    return parser


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # tearing torch down takes 0.1 s, and there is nothing to tear down
