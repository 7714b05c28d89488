"""From the groups `rounds` and `evaluation` to rules: fractions of sites are rounded up. Pure.

Ranges are the rules' own (contracts/run_plan.py). Every error names its key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, get_args

from fedfactory.contracts.errors import DataError, UnknownNameError, UsageError, ValueRangeError
from fedfactory.contracts.plans import Mode
from fedfactory.contracts.run_plan import EvaluationRules, RoundRules, number_of_sites

LOWER_IS_BETTER: Final = ("loss", "mae", "mse", "rmse", "error")


def run_mode(values: Mapping[str, Any]) -> Mode:
    """Return `rounds.mode`. Raises UnknownNameError."""
    mode: Mode = values["mode"]
    if mode not in get_args(Mode):
        raise UnknownNameError("rounds.mode", str(mode), get_args(Mode))
    return mode


def round_rules(values: Mapping[str, Any], sites: Sequence[str]) -> RoundRules:
    """Return the rules of `rounds.*` for a run in which `sites` may take part.

    Raises:
        UsageError: a value that is out of range or does not fit the others; names its key.
    """
    count, asynchronous = len(sites), values["mode"] == "async"
    per_round = _sites("rounds.per_round", values["per_round"], count)
    wanted = count if per_round is None else per_round
    quorum = _sites("rounds.quorum", values["quorum"], wanted)
    buffer = values["buffer"]
    converted = {
        "quorum": (1 if asynchronous else wanted) if quorum is None else quorum,
        "required": tuple(sorted(set(values["required"]))),
        "per_round": per_round,
        "buffer": math.ceil(count / 2) if asynchronous and buffer is None else buffer,
    }
    plain = {field.name: values[field.name] for field in fields(RoundRules)}
    return RoundRules(**{**plain, **converted})


def evaluation_rules(values: Mapping[str, Any], metrics: Sequence[str]) -> EvaluationRules:
    """Return the rules of `evaluation.*`. `metrics` are those that the task reports.

    Raises:
        UsageError: a value that is out of range or does not fit the others; names its key.
    """
    metric = values["metric"]
    if metrics and metric not in metrics:
        raise UnknownNameError("evaluation.metric", metric, metrics)
    rules = EvaluationRules(
        metric=metric,
        higher_is_better=not metric.endswith(LOWER_IS_BETTER),
        patience=values["patience"],
        min_delta=float(values["min_delta"]),
        keep=values["keep"],
    )
    if rules.judges and not metrics:
        raise UsageError(f"{rules.judges}: this task reports no metric to judge models by")
    return rules


def central_file(name: str | None) -> Path | None:
    """Return the public data set to measure on, None for none.

    Raises:
        DataError: there is no such file.
    """
    if name is None:
        return None
    if not Path(name).is_file():
        raise DataError(
            f"evaluation.central={name}: there is no such file; expected an NPZ with x and y"
        )
    return Path(name)


def _sites(key: str, value: Any, count: int) -> int | None:
    """Return a number of sites out of `count` from a number or a fraction of them."""
    if isinstance(value, float) and 0 < value < 1:
        return math.ceil(value * count)
    if value is not None and type(value) is not int:
        raise ValueRangeError(key, value, number_of_sites(count))
    return value
