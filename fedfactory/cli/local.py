"""`fedfactory local [key=value ...]`: Hydra's overrides after the sub-command, and its `--cfg job`.

Nothing here imports torch or Flower; a wrong word is answered before either is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.main import EXIT_CODES
from fedfactory.contracts.errors import UsageError

ROOT: Final = "run"
EXAMPLES: Final = """\
examples:
  fedfactory local rounds=5 task.model=cnn
  fedfactory local task=breast_cancer partition=iid strategy=fedprox strategy.mu=0.1
  fedfactory local task.data=my.npz 'federation.sites=[cesga,lumi]' round.quorum=1
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
    from omegaconf import OmegaConf

    from fedfactory.config import run_config
    from fedfactory.hydra_config import compose_config, plain
    from fedfactory.run_schema import CHOICE_SCHEMAS, RunSchema

    composed = compose_config(ROOT, overrides, RunSchema, CHOICE_SCHEMAS, _tables())
    text = OmegaConf.to_yaml(composed)
    config = run_config(plain(composed), text)
    if show:
        sys.stdout.write(text)
        return 0
    from fedfactory.local.run import run_local

    return run_local(config)


def _tables() -> dict[str, list[str]]:
    """Return the names that a group's table knows, plug-ins of installed packages among them."""
    from fedfactory.tasks.table import TASKS
    from strategies import STRATEGIES

    return {"task": TASKS.names(), "strategy": STRATEGIES.names()}


def _help() -> str:
    from site_agents.catalogue import site_names

    run_yaml = (files("fedfactory.conf") / f"{ROOT}.yaml").read_text(encoding="utf-8")
    _, _, defaults = run_yaml.partition("_self_\n")
    return "\n".join(
        [
            "usage: fedfactory local [key=value ...] [--cfg job]",
            "",
            "Runs a whole federation on this machine: the same daemons with the same TLS as a real",
            "one, as processes on loopback. --cfg job prints the configuration and stops.",
            "",
            "choices (* default), with keys of their own:",
            *_choice_lines(),
            "",
            f"sites of the catalogue: {', '.join(site_names())}",
            "",
            "keys and their defaults:",
            *(f"  {line}".rstrip() for line in defaults.strip().splitlines()),
            "",
            EXAMPLES,
            "",
            EXIT_CODES,
        ]
    )


def _choice_lines() -> list[str]:
    from fedfactory.choices import choices, groups, values_of

    lines = []
    for group, default in groups(ROOT).items():
        for choice in sorted({*choices(group), *_tables().get(group, ())}):
            keys = values_of(group, choice) if choice in choices(group) else {"...": "its own keys"}
            own = "  ".join(
                f"{group}.{key}={_shown(value)}"
                for key, value in keys.items()
                if value != choice  # `name: digits` in digits.yaml is no key to set
            )
            star = "*" if choice == default else " "
            lines.append(f"  {star} {f'{group}={choice}':<23} {own}".rstrip())
    return lines


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if value is None:
        return "null"
    return "(mandatory)" if value == "???" else str(value)
