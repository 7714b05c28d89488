"""`python -m bench.utility [digits breast_cancer | all] [--seeds N]`: what privacy costs.

Runs `fedfactory local baselines=true` as a user would, at epsilon 3 and delta 1e-4 a site, and
without privacy, over several seeds (share, split, initial model; the noise never repeats). Accuracy
is of the final model on the union of all test splits. The hyperparameters of a recipe were chosen
on the same public data, on other seeds, and are the same for all seeds: a search on a site's own
data would be charged.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

EPSILON, DELTA = 3.0, 1e-4
COMMON = ("partition=iid", "evaluate=false", "baselines=true")
PRIVATE = (
    "privacy=dp_sgd",
    f"privacy.target_epsilon={EPSILON}",
    f"privacy.delta={DELTA}",
)
# Everybody in every step, one step a round, no momentum: noise averages over sites at each step.
RECIPE = ("rounds=40", "local_epochs=1", "batch_size=1000", "momentum=0")
TASKS = {
    "digits": (("task=digits", "task.model=cnn"), (*RECIPE, "lr=1.5")),
    "breast_cancer": (("task=breast_cancer",), (*RECIPE, "lr=1")),
}


def accuracies(words: Sequence[str]) -> dict[str, float]:
    """Run a federation to its end; return accuracies of the shared, the lone and the pooled."""
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "fedfactory.cli.main", "local", f"out={out}", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = json.loads((out / "summary.json").read_text())["baselines"]
    alone = statistics.mean(found["local_only"].values())
    return {"federated": found["shared"], "alone (mean of sites)": alone, "pooled": found["pooled"]}


def show(name: str, words: Sequence[str], seeds: int) -> None:
    runs = [accuracies([*COMMON, *words, f"seed={seed}"]) for seed in range(101, 101 + seeds)]
    for who in runs[0]:
        values = [run[who] for run in runs]
        spread = f"({min(values):.3f}-{max(values):.3f}, {seeds} seeds)"
        print(f"{name:<36} {who:<22} {statistics.mean(values):.3f} {spread}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.utility", description=__doc__)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    for name in TASKS if "all" in options.tasks else options.tasks:
        task, recipe = TASKS[name]
        show(
            f"{name}, epsilon {EPSILON:g}, delta {DELTA:g}",
            (*task, *PRIVATE, *recipe),
            options.seeds,
        )
        show(f"{name}, no privacy", task, options.seeds)


if __name__ == "__main__":
    main()
