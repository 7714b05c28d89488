"""`fedfactory privacy plan`: which noise a run needs, before anything runs.

Works out what a site's agent would at admission, by the same functions and the same accountant, for
a lineage without a history.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_json, print_json
from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.privacy.accounting import (
    LEAST_NOISE,
    MOST_NOISE,
    Accountant,
    Cost,
    Limits,
    Rdp,
    epsilon_of,
    joined,
    most_rounds,
)
from fedfactory.privacy.delta import delta_fault
from fedfactory.privacy.sampling import Sampling, sampling
from site_agents.accountant import RdpAccounting
from site_agents.admission import Caps, Shortfall, limits_of, plan_charges

MOST_ROUNDS: Final = 1_000_000
HEADINGS: Final = ("RECORDS", "ROUNDS", "RATE", "STEPS A ROUND", "NOISE", "EPSILON")

ROWS_NOTE: Final = (
    "A device whose rounding follows the number of rows takes one record at a time, about 15 times"
    " slower:\n'site-agent doctor' at the site says whether its own does."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One site's part of one plan. `noise` is None where none keeps the cap.

    `epsilon` is that of all `rounds`, None where they do not fit. `rounds_to_cap` counts the rounds
    that fit `cap` with this noise, at most MOST_ROUNDS. `rows_per_pass` is what a site goes through
    a network with at a time, before its memory and its device are asked.
    """

    records: int
    rounds: int
    sample_rate: float
    steps_per_round: int
    rows_per_pass: int
    noise: float | None
    epsilon: float | None
    cap: float
    rounds_to_cap: int | None


def run(words: Sequence[str]) -> int:
    """Print a plan for each number of records and rounds; return 0."""
    asked = _parser().parse_args(words)
    known: dict[Cost, Rdp] = {}
    accountant = RdpAccounting(known.get, known.__setitem__)
    rows = [
        plan(accountant, asked, records=records, rounds=rounds)
        for records in asked.records
        for rounds in asked.rounds
    ]
    sizes = ((records, f"{records} records") for records in asked.records)
    faults = [delta_fault(asked.delta, records, size=size) for records, size in sizes]
    warnings = [f"delta {fault}: sites refuse such a run" for fault in faults if fault]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if asked.json:
        about = {"delta": asked.delta, "accountant": accountant.name, "unit": "row"}
        about = {**about, "warnings": warnings}
        print_json({**about, "plans": [asdict(row) for row in rows]})
        return 0
    print(f"delta {asked.delta:g}, batch {asked.batch_size}, by {accountant.name};")
    print("one record replaced by null, Poisson sampling, a lineage without a history\n")
    print("\n".join(_columns([(*HEADINGS, f"ROUNDS TO {rows[0].cap:g}"), *map(_row, rows)])))
    print(f"\n{ROWS_NOTE}")
    if any(row.epsilon is None for row in rows):
        print(f"\n-: neither the noise asked for, nor any up to {MOST_NOISE:g}, keeps the cap;")
        print("   fewer rounds, smaller batches, more records or a higher epsilon would")
    return 0


def plan(
    accountant: Accountant, asked: argparse.Namespace, *, records: int, rounds: int
) -> Planned:
    """Plan one site's part. `records` is its public size.

    Raises:
        ValueRangeError: a value is out of range; names the flag's value.
    """
    for name, value in (("records", records), ("rounds", rounds)):
        if value < 1:
            raise ValueRangeError(name, value, "a whole number from 1")
    privacy, training = _privacy(asked), _training(asked)
    cap = asked.lineage_epsilon or asked.epsilon
    caps = Caps(epsilon_per_run=asked.epsilon, epsilon_per_lineage=cap)
    evaluate = privacy.evaluation_noise_multiplier is not None
    charges = plan_charges(
        accountant,
        privacy,
        training,
        rounds=rounds,
        evaluate=evaluate,
        public_size=records,
        others={},
        limits=limits_of(privacy, caps, asked.delta),
    )
    once = sampling(training, records)
    noise, epsilon = asked.noise, None
    if not isinstance(charges, Shortfall):
        noise = charges[0].cost.noise_multiplier
        total = joined(*({charge.cost: charge.steps} for charge in charges))
        epsilon = epsilon_of(accountant, total, asked.delta)
    return Planned(
        records=records,
        rounds=rounds,
        sample_rate=once.sample_rate,
        steps_per_round=once.steps,
        rows_per_pass=once.pass_rows,
        noise=noise,
        epsilon=epsilon,
        cap=cap,
        rounds_to_cap=None if noise is None else _rounds_to(accountant, asked, noise, once, cap),
    )


def _rounds_to(
    accountant: Accountant,
    asked: argparse.Namespace,
    noise: float,
    once: Sampling,
    cap: float,
) -> int:
    per_round = {Cost(noise_multiplier=noise, sample_rate=once.sample_rate): once.steps}
    if asked.evaluation_noise is not None:
        evaluation = Cost(noise_multiplier=asked.evaluation_noise, sample_rate=1.0)
        per_round = joined(per_round, {evaluation: 1})
    limits = Limits(run=cap, lineage=cap, delta=asked.delta)
    return most_rounds(accountant, per_round, {}, limits, at_most=MOST_ROUNDS)


def _privacy(asked: argparse.Namespace) -> PrivacyPlan:
    if asked.noise is not None and not asked.noise >= LEAST_NOISE:
        raise ValueRangeError("noise", asked.noise, f"a noise multiplier from {LEAST_NOISE:g}")
    for name in ("epsilon", "lineage_epsilon"):
        value = getattr(asked, name)
        if value is not None and not 0 < value <= 1000:
            raise ValueRangeError(name, value, "a number above 0, at most 1000")
    return PrivacyPlan(
        target_epsilon=asked.epsilon if asked.noise is None else None,
        noise_multiplier=asked.noise,
        delta=asked.delta,
        clip_norm_l2=1.0,  # what noise is measured in: the plan does not depend on it
        grad_sample_mode="hooks",
        evaluation_noise_multiplier=asked.evaluation_noise,
        evaluation_loss_clip=1.0,
    )


def _training(asked: argparse.Namespace) -> TrainParameters:
    return TrainParameters(
        local_epochs=asked.epochs,
        batch_size=asked.batch_size,
        lr=1.0,  # no part of the cost
        momentum=0.0,
        proximal_mu=0.0,
        max_steps=asked.max_steps,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Arguments(prog="fedfactory privacy", description="Plan differential privacy.")
    commands = parser.add_subparsers(
        dest="what", required=True, metavar="COMMAND", parser_class=Arguments
    )
    told = "which noise a run needs at a site, and how many rounds fit"
    command = commands.add_parser("plan", help=told, description=f"Tell {told}.")
    command.add_argument(
        "--records", type=int, nargs="+", required=True, metavar="N", help="a site's public size"
    )
    command.add_argument("--rounds", type=int, nargs="+", required=True, metavar="R")
    command.add_argument("--batch-size", type=int, required=True, metavar="B")
    command.add_argument("--epsilon", type=float, required=True, metavar="E", help="of the run")
    command.add_argument("--delta", type=float, required=True, metavar="D")
    command.add_argument("--epochs", type=int, default=1, metavar="N", help="of a round (1)")
    command.add_argument("--max-steps", type=int, metavar="N", help="of a round, at most")
    command.add_argument(
        "--noise",
        type=float,
        metavar="SIGMA",
        help="noise over clipping norm, in place of a search",
    )
    command.add_argument(
        "--evaluation-noise", type=float, metavar="SIGMA", help="sites evaluate, with this noise"
    )
    command.add_argument(
        "--lineage-epsilon",
        type=float,
        metavar="E",
        help="the site's cap for all runs (as --epsilon)",
    )
    add_json(command)
    return parser


def _row(one: Planned) -> tuple[str, ...]:
    return (
        str(one.records),
        str(one.rounds),
        f"{one.sample_rate:.4g}",
        str(one.steps_per_round),
        "-" if one.noise is None else f"{one.noise:.3f}",
        "-" if one.epsilon is None else f"{one.epsilon:.3f}",
        "-" if one.rounds_to_cap is None else str(one.rounds_to_cap),
    )


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
