"""`fedfactory local [key=value ...]`: Hydra's overrides after the sub-command, and its `--cfg job`.

Nothing here imports torch or Flower; a wrong word is answered before either is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.completers import completed
from fedfactory.cli.composing import choices_help, compose_run, override_words
from fedfactory.cli.follow_run import form_of
from fedfactory.cli.forms import add_forms, print_json
from fedfactory.cli.main import EXIT_CODES
from fedfactory.contracts.errors import UsageError

if TYPE_CHECKING:
    from fedfactory.report.reporter import Form

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
    overrides = parser.add_argument("overrides", nargs="*", metavar="key=value")
    completed(overrides, override_words)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("-m", "--multirun", action="store_true")
    add_forms(parser)
    words = parser.parse_intermixed_args(arguments)
    if words.help:
        print(_help())
        return 0
    if words.multirun:
        raise UsageError(f"{parser.prog} runs one configuration at a time: --multirun is no option")
    return _local(words.overrides, form_of(words), show=words.cfg is not None)


def _local(overrides: Sequence[str], form: Form, *, show: bool) -> int:
    from fedfactory.config import run_config

    composed = compose_run(overrides)
    config = run_config(composed.values, composed.text)
    if show:
        if form == "json":
            print_json(composed.values)
        else:
            sys.stdout.write(composed.text)
        return 0
    from fedfactory.local.run import run_local

    return run_local(config, form)


def _help() -> str:
    return "\n".join(
        [
            "usage: fedfactory local [key=value ...] [--cfg job] [--json] [-q]",
            "",
            "Runs a whole federation on this machine: the same daemons with the same TLS as a real",
            "one, as processes on loopback. --cfg job prints the configuration and stops.",
            "--json prints a line per event, as `fedfactory run` does; -q the run's id and errors.",
            "",
            *choices_help(),
            "",
            EXAMPLES,
            "",
            EXIT_CODES,
        ]
    )
