"""`fedfactory local [key=value ...]`: Hydra overrides after the sub-command, nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files

from fedfactory.cli.main import EXIT_CODES
from fedfactory.contracts.errors import UsageError


def run(arguments: Sequence[str]) -> int:
    """Run a federation on this machine, or show what there is to choose."""
    from fedfactory.hydra_config import compose_config, plain

    words = list(arguments)
    if "-h" in words or "--help" in words:
        print(_help())
        return 0
    show = _take_cfg(words)
    if flags := [w for w in words if w.startswith("-")]:
        raise UsageError(f"'{flags[0]}' is no option here; known: --help, --cfg job, key=value")
    from omegaconf import OmegaConf

    from fedfactory.config import RunSchema, run_config

    composed = compose_config("run", words, RunSchema)
    text = OmegaConf.to_yaml(composed)
    if show:
        sys.stdout.write(text)
        return 0
    config = run_config(plain(composed), text)
    from fedfactory.local.run import run_local

    return run_local(config)


def _take_cfg(words: list[str]) -> bool:
    if "--cfg" not in words:
        return False
    at = words.index("--cfg")
    if words[at + 1 : at + 2] != ["job"]:
        raise UsageError("--cfg shows one thing: --cfg job")
    del words[at : at + 2]
    return True


def _help() -> str:
    from fedfactory.hydra_config import GROUPS, choices

    groups = [f"  {group}={'|'.join(choices(group))}" for group in GROUPS]
    defaults = (files("fedfactory.conf") / "run.yaml").read_text()
    keys = [f"  {line}" for line in defaults[defaults.index("rounds:") :].splitlines()]
    return "\n".join(
        [
            "usage: fedfactory local [key=value ...] [--cfg job]",
            "",
            "Runs a whole federation on this machine: the same daemons with the same TLS as a real",
            "one, as processes, on loopback. --cfg job prints the configuration and stops.",
            "",
            "groups to choose from (their own keys nest: task.model=cnn, partition.alpha=0.1):",
            *groups,
            "",
            "keys and their defaults:",
            *keys,
            "",
            "examples:",
            "  fedfactory local rounds=5 task.model=cnn",
            "  fedfactory local task=breast_cancer partition=iid strategy=fedprox strategy.mu=0.1",
            "  fedfactory local strategy=custom strategy._target_=flwr.serverapp.strategy.FedMedian",
            "  fedfactory local task.data=my.npz 'federation.sites=[cesga,lumi]' round.quorum=1",
            "",
            EXIT_CODES,
        ]
    )
