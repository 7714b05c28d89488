"""What a coordinator needs of a model without importing torch itself: a process that makes it.

`python -m fedfactory.tasks.model_jobs init --task T --parameters JSON --seed N --out FILE` writes
the initial model and prints its digest and length as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.tasks.table import load_task


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one job; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedfactory.tasks.model_jobs")
    jobs = parser.add_subparsers(required=True)
    init = jobs.add_parser("init", help="write a task's initial model")
    init.add_argument("--task", required=True)
    init.add_argument("--parameters", type=json.loads, required=True)
    init.add_argument("--seed", type=int, required=True)
    init.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        task = load_task(options.task)
        ref = task.write_initial(options.parameters, options.seed, options.out)
    except FedfactoryError as error:
        sys.stderr.write(f"{error.public_message}\n")
        return error.exit_code
    sys.stdout.write(f"{to_json(ref)}\n")
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # tearing torch down takes 0.1 s, and there is nothing to tear down
