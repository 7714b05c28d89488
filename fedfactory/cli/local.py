"""`fedfactory local [key=value ...]`: Hydra's overrides after the sub-command, and its `--cfg job`.

Nothing here imports torch or Flower; a wrong word is answered before either is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.main import EXIT_CODES
from fedfactory.contracts.errors import UsageError

EXAMPLES: Final = """\
examples:
  fedfactory local rounds=5 task.model=cnn
  fedfactory local task=breast_cancer partition=iid strategy=fedprox strategy.mu=0.1
  fedfactory local task.data=my.npz 'federation.sites=[cesga,lumi]' rounds.quorum=1
  fedfactory local federation=numbered federation.count=6 partition=labels
  fedfactory local strategy=custom strategy._target_=flwr.serverapp.strategy.FedAdam \\
      strategy.eta=0.01"""


def run(arguments: Sequence[str]) -> int:
    """Run a federation on this machine, or show what there is to choose."""
    parser = Arguments(prog="fedfactory local", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("-m", "--multirun", action="store_true")
    words = parser.parse_intermixed_args(arguments)
    if words.help:
        print(_help())
        return 0
    if words.multirun:
        raise UsageError(f"{parser.prog} runs one configuration at a time: --multirun is no option")
    return _local(words.overrides, show=words.cfg is not None)


def _local(overrides: Sequence[str], *, show: bool) -> int:
    from fedfactory.cli.composing import compose_run
    from fedfactory.config import run_config

    composed = compose_run(overrides)
    config = run_config(composed.values, composed.text)
    if show:
        sys.stdout.write(composed.text)
        return 0
    from fedfactory.local.run import run_local

    return run_local(config)


def _help() -> str:
    from fedfactory.cli.composing import choices_help

    return "\n".join(
        [
            "usage: fedfactory local [key=value ...] [--cfg job]",
            "",
            "Runs a whole federation on this machine: the same daemons with the same TLS as a real",
            "one, as processes on loopback. --cfg job prints the configuration and stops.",
            "",
            *choices_help(),
            "",
            EXAMPLES,
            "",
            EXIT_CODES,
        ]
    )
