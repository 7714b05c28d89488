"""How a run's rounds go, checked: the groups `rounds` and `evaluation` as rules. Pure.

Every error names its key. Fractions become numbers of sites here, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from fedfactory.contracts.errors import DataError, UnknownNameError, UsageError, ValueRangeError
from fedfactory.contracts.plans import Mode
from fedfactory.contracts.run_plan import EvaluationRules, RoundRules, Selection

MAX_RETRIES: Final = 100
MAX_CHECKPOINTS: Final = 1_000_000
LOWER_IS_BETTER: Final = ("loss", "mae", "mse", "rmse", "error")
KEEPS: Final = ("last", "best")
_ONLY_SYNC: Final[Mapping[str, Any]] = {
    "quorum": None, "select": "all", "per_round": None, "extra": 0,
}  # fmt: skip


def run_mode(values: Mapping[str, Any]) -> Mode:
    """Return `rounds.mode`. Raises UnknownNameError."""
    mode: Mode = _one_of("rounds.mode", values["mode"], get_args(Mode))
    return mode


def round_rules(values: Mapping[str, Any], sites: Sequence[str]) -> RoundRules:
    """Return the rules of `rounds.*` for a run in which `sites` may take part.

    Raises:
        UsageError: a value that is out of range or does not fit the others; names its key.
    """
    count = len(sites)
    per_round = _sites("rounds.per_round", values["per_round"], count)
    wanted = count if per_round is None else per_round
    _check_extra(values["extra"], per_round, count)
    return RoundRules(
        quorum=1
        if values["mode"] == "async"
        else _sites("rounds.quorum", values["quorum"], wanted) or wanted,
        required=_required(values["required"], sites, wanted),
        deadline_s=_seconds("rounds.deadline_s", values["deadline_s"], above=True),
        lateness_s=_seconds("rounds.lateness_s", values["lateness_s"], above=False),
        retries=_whole("rounds.retries", values["retries"], 0, MAX_RETRIES),
        select=_one_of("rounds.select", values["select"], get_args(Selection)),
        per_round=_selected(values["select"], per_round),
        extra=values["extra"],
        buffer=_buffer(values, count),
    )


def evaluation_rules(
    values: Mapping[str, Any],
    *,
    sites: bool,
    central: bool,
    mode: Mode,
    metrics: Sequence[str],
) -> EvaluationRules:
    """Return the rules of `evaluation.*`. `metrics` are those that the task reports.

    `sites` tells whether the sites measure, `central` whether the coordinator does.

    Raises:
        UsageError: a value that is out of range or does not fit the others; names its key.
    """
    metric, patience = values["metric"], values["patience"]
    if patience is not None:
        _whole("evaluation.patience", patience, 1, MAX_CHECKPOINTS)
    keep = _one_of("evaluation.keep", values["keep"], KEEPS)
    _seconds("evaluation.min_delta", values["min_delta"], above=False, unit="a number")
    if metrics and metric not in metrics:
        raise UnknownNameError("evaluation.metric", metric, metrics)
    judged = [("evaluation.patience", patience)] if patience is not None else []
    judged += [("evaluation.keep", keep)] if keep == "best" else []
    for key, found in judged:
        _check_judged(key, found, sites=sites, central=central, mode=mode, metrics=metrics)
    return EvaluationRules(
        metric=metric,
        higher_is_better=not metric.endswith(LOWER_IS_BETTER),
        patience=patience,
        min_delta=float(values["min_delta"]),
        keep=keep,
    )


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


def _check_judged(
    key: str, found: object, *, sites: bool, central: bool, mode: Mode, metrics: Sequence[str]
) -> None:
    """Check that there is something to judge each round's model by."""
    if not metrics:
        raise UsageError(f"{key}={found}: this task reports no metric to judge models by")
    if mode == "async" and not central:
        raise UsageError(
            f"{key}={found}: in async mode the sites measure the last model only; give"
            " evaluation.central"
        )
    if not sites and not central:
        raise UsageError(
            f"{key}={found}: nothing measures the models; set evaluate=true (under privacy=dp_sgd"
            " also privacy.evaluation_noise_multiplier), or give evaluation.central"
        )


def _one_of(key: str, value: Any, known: Sequence[str]) -> Any:
    if value not in known:
        raise UnknownNameError(key, str(value), known)
    return value


def _whole(key: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueRangeError(key, value, f"a whole number from {low} to {high}")
    return value


def _seconds(key: str, value: float, *, above: bool, unit: str = "seconds") -> float:
    if not (math.isfinite(value) and (value > 0 if above else value >= 0)):
        raise ValueRangeError(key, value, f"{unit} {'above' if above else 'from'} 0")
    return float(value)


def _sites(key: str, value: Any, count: int) -> int | None:
    """Return a number of sites out of `count` from a number or a fraction of them."""
    if value is None:
        return None
    if isinstance(value, float) and 0 < value < 1:
        return math.ceil(value * count)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= count:
        expected = f"a whole number from 1 to {count} (sites), a fraction between 0 and 1, or null"
        raise ValueRangeError(key, value, expected)
    return value


def _required(names: Sequence[str], sites: Sequence[str], wanted: int) -> tuple[str, ...]:
    for name in names:
        if name not in sites:
            raise UnknownNameError("site in rounds.required", name, sites)
    if len(set(names)) > wanted:
        found = f"[{','.join(names)}]"
        raise ValueRangeError("rounds.required", found, f"at most {wanted} sites (per_round)")
    return tuple(sorted(set(names)))


def _check_extra(extra: int, per_round: int | None, count: int) -> None:
    if extra == 0:
        return
    if per_round is None:
        raise ValueRangeError(
            "rounds.extra", extra, "0 where all sites are asked; set rounds.per_round"
        )
    _whole("rounds.extra", extra, 0, count - per_round)


def _selected(select: str, per_round: int | None) -> int | None:
    if select == "all" and per_round is not None:
        raise ValueRangeError(
            "rounds.per_round", per_round, "null with rounds.select=all; take another selection"
        )
    if select != "all" and per_round is None:
        raise ValueRangeError(
            "rounds.per_round", None, f"how many sites rounds.select={select} takes"
        )
    return per_round


def _buffer(values: Mapping[str, Any], count: int) -> int | None:
    buffer = values["buffer"]
    if values["mode"] == "sync":
        if buffer is not None:
            raise ValueRangeError("rounds.buffer", buffer, "null; it is for rounds.mode=async")
        return None
    for key, only in _ONLY_SYNC.items():
        if values[key] != only:
            raise ValueRangeError(
                f"rounds.{key}", values[key], f"{only or 'null'} in rounds.mode=async"
            )
    return math.ceil(count / 2) if buffer is None else _whole("rounds.buffer", buffer, 1, count)
