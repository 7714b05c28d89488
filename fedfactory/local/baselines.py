"""What each site alone, and pooled data, would have reached: a job of a process of its own.

Alone: rounds x local_epochs epochs on the site's own training split. Pooled: as many epochs over
all training splits together, which is the federation's total of local steps. Both start from the
run's initial model and are measured on the union of all test splits.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedfactory.contracts.codec import decode
from fedfactory.contracts.orders import Scalar, TrainParameters
from fedfactory.tasks.examples import Examples, SiteData
from fedfactory.tasks.seeds import derive_seed
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import Task
from fedfactory.wire.arrays import read_arrays, write_arrays
from site_agents.data.sources import load_site_data


def measure(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return {local_only: {site: accuracy}, pooled: accuracy}; `folder` holds the models."""
    task = load_task(request["task"])
    parameters = request["task_parameters"]
    once = decode(TrainParameters, dict(request["training"]))
    training = replace(
        once,
        local_epochs=once.local_epochs * request["rounds"],
        max_steps=once.max_steps * request["rounds"] if once.max_steps else None,
    )
    options = request["data"]
    shares = {site: load_site_data(options, site, task) for site in options["sites"]}
    test = _joined([share.test for share in shares.values()])
    base = folder / "initial.safetensors"
    task.write_initial(parameters, request["seed"], base)

    def accuracy(name: str, train: Examples, parts: int) -> float:
        data = SiteData(train=train, test=test)
        seed = derive_seed(request["seed"], "baseline", name)
        steps = training.max_steps * parts if training.max_steps else None
        return _accuracy(task, parameters, data, replace(training, max_steps=steps), base, seed)

    alone = {site: accuracy(site, share.train, 1) for site, share in shares.items()}
    pooled_training = _joined([share.train for share in shares.values()])
    return {"local_only": alone, "pooled": accuracy("pooled", pooled_training, len(shares))}


def _accuracy(  # noqa: PLR0917
    task: Task,
    parameters: Mapping[str, Scalar],
    data: SiteData,
    training: TrainParameters,
    base: Path,
    seed: int,
) -> float:
    workload = task.open(parameters, data, "cpu")
    update = base.with_name("update.safetensors")
    workload.train(base=base, out=update, training=training, seed=seed)
    arrays, delta = read_arrays(base), read_arrays(update)
    trained = base.with_name("trained.safetensors")
    write_arrays(trained, {n: a + delta[n] if n in delta else a for n, a in arrays.items()})
    return float(workload.evaluate(base=trained).metrics["accuracy"])


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(
        x=np.concatenate([part.x for part in parts]), y=np.concatenate([part.y for part in parts])
    )


def main() -> int:
    """Read the request, measure, write the result in one piece."""
    parser = argparse.ArgumentParser(prog="python -m fedfactory.local.baselines")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(json.loads(options.config.read_text()), Path(folder))
    partial = options.out.with_suffix(".part")
    partial.write_text(json.dumps(result))
    partial.replace(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
