"""`fedfactory run [key=value ...]`: submit a run to the coordinator and follow it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.completers import completed
from fedfactory.cli.composing import (
    Composed,
    choices_help,
    compose_run,
    of_sites,
    override_words,
)
from fedfactory.cli.follow_run import check_free, follow, followed_folder, form_of
from fedfactory.cli.forms import say
from fedfactory.cli.main import EXIT_CODES
from fedfactory.cli.operating import add_operating, connected
from fedfactory.contracts.errors import RefusedError, UnreachableError, UsageError
from fedfactory.identity.roles import Role

if TYPE_CHECKING:
    from fedfactory.config import RunConfig
    from fedfactory.contracts.model import BlobRef
    from fedfactory.contracts.run_plan import RunPlan
    from fedfactory.operator.client import OperatorClient
    from fedfactory.wire.operations import Submitted

ABOUT: Final = "Submit a run to the coordinator and follow it."
EXAMPLES: Final = """\
examples:
  fedfactory run rounds=5 task=digits
  fedfactory run --sites cesga,lumi rounds.quorum=1 privacy=dp_sgd
  fedfactory run --detach -q rounds=20 model=last     (warm start from the newest run's model)"""


def run(words: Sequence[str]) -> int:
    """Submit a run; return the exit code of what became of it."""
    parser = _parser()
    asked = parser.parse_intermixed_args(words)
    if asked.help:
        print("\n".join([parser.format_help(), *choices_help(), "", EXAMPLES, "", EXIT_CODES]))
        return 0
    composed = compose_run(asked.overrides)
    _check_local_only(composed, asked.overrides)
    with connected(asked) as client, tempfile.TemporaryDirectory(prefix="fedfactory-") as scratch:
        if client.operator.role is not Role.OPERATOR:
            raise RefusedError(
                f"{client.operator.name} is a {client.operator.role}: only operators submit runs"
            )
        config = _configured(composed, _sites(client, asked, composed))
        out = asked.out or config.out
        if out is not None and not asked.detach:
            check_free(out)
        plan = _prepared(client, config, asked, Path(scratch))
        folder = followed_folder(out, plan.terms.run_id)
        submitted = _submitted(client, plan)
        _tell(submitted, asked)
        if submitted.run_id is None:
            raise RefusedError(f"the run was not taken: {submitted.reason}")
        if asked.detach:
            return 0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.composed_yaml)
        return follow(client, submitted.run_id, folder, asked)


def _parser() -> Arguments:
    parser = Arguments(prog="fedfactory run", description=ABOUT, add_help=False)
    overrides = parser.add_argument("overrides", nargs="*", metavar="key=value")
    completed(overrides, override_words)
    parser.add_argument("-h", "--help", action="store_true", help="show this, and all keys")
    parser.add_argument("--sites", metavar="A,B", help="who takes part (default: all enrolled)")
    parser.add_argument("--detach", action="store_true", help="submit only: do not follow it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/<id>)")
    parser.add_argument("--yes", action="store_true", help="do not ask before it is signed")
    add_operating(parser)
    return parser


def _sites(
    client: OperatorClient, asked: argparse.Namespace, composed: Composed
) -> tuple[str, ...]:
    """Return the sites that take part: as asked, else of the federation chosen, else everybody."""
    from fedfactory.operator.submission import chosen_sites

    federation = None
    if any(_group_of(word) == "federation" for word in asked.overrides):
        federation = composed.values["federation"]
    if asked.sites is not None and federation is not None:
        raise UsageError("--sites and federation both say who takes part: give one of them")
    return chosen_sites(client.members().members, asked.sites, federation)


def _check_local_only(composed: Composed, overrides: Sequence[str]) -> None:
    """Refuse what has no effect on real sites. Raises UsageError."""
    given = {"task.data": composed.values["task"].get("data")}
    given["baselines"] = composed.values["baselines"]
    for group in ("partition", "executor"):
        given[group] = any(_group_of(word) == group for word in overrides)
    for name, found in given.items():
        if found:
            own = "the executor is" if name == "executor" else "the data is"
            raise UsageError(
                f"{name} is for `fedfactory local` alone: at a real site {own} the site's own"
            )


def _group_of(override: str) -> str:
    """Return the first part of an override's key: `partition` of '+partition.alpha=1'."""
    key, _, _ = override.lstrip("+~").partition("=")
    return key.split(".", maxsplit=1)[0].split("@", maxsplit=1)[0]


def _configured(composed: Composed, sites: tuple[str, ...]) -> RunConfig:
    from fedfactory.config import run_config
    from fedfactory.operator.submission import check_choices

    config = run_config(composed.values, of_sites(composed, sites), sites=sites)
    check_choices(config)
    return config


def _confirm(config: RunConfig, initial: BlobRef, asked: argparse.Namespace) -> None:
    """Show on a terminal what is about to be signed, and ask. Raises UsageError: no."""
    if not sys.stdin.isatty() or asked.yes or asked.quiet or asked.json:
        return
    say("\n".join(_summary(config, initial)))
    print("sign and submit? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("not submitted")


def _summary(config: RunConfig, initial: BlobRef) -> list[str]:
    privacy = config.privacy
    kept = "none: updates may reveal records"
    if privacy is not None:
        aim = f"epsilon {privacy.target_epsilon:g}" if privacy.target_epsilon else "by its noise"
        kept = f"DP-SGD, {aim}, delta {privacy.delta:g}"
    from fedfactory.report.text import rounds_of

    options = "".join(f", {name}={value}" for name, value in config.strategy_options.items())
    most = config.max_update_norm_l2
    return [
        f"task      {config.task_name}, {rounds_of(config.rounds)}",
        f"strategy  {config.strategy_name}{options}",
        f"model     {initial.digest}, {initial.bytes} bytes",
        f"lr        at most {config.training.lr:g}, momentum {config.training.momentum:g}",
        f"updates   of norm {most:g} at most" if most else "updates   bounded by rule",
        f"sites     {', '.join(config.sites)} (quorum {config.rules.quorum})",
        f"privacy   {kept}",
    ]


def _prepared(
    client: OperatorClient, config: RunConfig, asked: argparse.Namespace, scratch: Path
) -> RunPlan:
    """Make what the run starts from, ask for agreement, upload it; return it signed."""
    from fedfactory.operator.starting import starting_arrays
    from fedfactory.operator.submission import run_plan

    if not (asked.quiet or asked.json):
        say("making the initial model ..." if config.model is None else "preparing the model ...")
    arrays = starting_arrays(client, config, scratch)
    _confirm(config, arrays.initial, asked)
    arrays.upload(client)
    now = time.time()
    run_id = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d-%H%M%S-") + os.urandom(2).hex()
    return run_plan(
        config,
        coordinator=client.operator.consortium,
        run_id=run_id,
        signer=client.operator.signer,
        initial=arrays.initial,
        central=arrays.central,
        now=now,
    )


def _submitted(client: OperatorClient, plan: RunPlan) -> Submitted:
    try:
        return client.submit(plan)
    except UnreachableError as error:
        raise UnreachableError(
            f"the coordinator broke off before it answered: `fedfactory runs` tells whether it took"
            f" {plan.terms.run_id}",
            diagnostic=error.diagnostic,
        ) from error


def _tell(submitted: Submitted, asked: argparse.Namespace) -> None:
    from fedfactory.operator.telling import finding_lines, submitted_lines

    for line in submitted_lines(submitted, form_of(asked)):
        print(line, flush=True)
    if not asked.json:
        for line in finding_lines(submitted.findings):
            say(line)
