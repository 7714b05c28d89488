"""What a run is configured to be: Hydra's schema of it, and the checked value the code uses.

Values and their defaults live in conf/; here are their types and their ranges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.errors import DataError, UnknownNameError, UsageError, ValueRangeError
from fedfactory.contracts.orders import Scalar, TrainParameters

MAX_SEED: Final = 2**63
_SITE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MISSING: Final = "???"


@dataclass
class FederationSchema:
    """Who takes part."""

    name: str = _MISSING
    sites: list[str] | None = None
    count: int | None = None


@dataclass
class PartitionSchema:
    """How local mode splits one data set among its sites."""

    kind: str = _MISSING
    alpha: float | None = None
    labels_per_site: int | None = None


@dataclass
class PrivacySchema:
    """The privacy mode asked of the sites."""

    mode: str = _MISSING


@dataclass
class ExecutorSchema:
    """How a site runs its work."""

    name: str = _MISSING


@dataclass
class RoundSchema:
    """When a round counts, and how long it may take."""

    quorum: int | None = None
    deadline_s: float = _MISSING  # type: ignore[assignment]


@dataclass
class RunSchema:
    """The types Hydra holds every override against."""

    task: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    federation: FederationSchema = field(default_factory=FederationSchema)
    partition: PartitionSchema = field(default_factory=PartitionSchema)
    privacy: PrivacySchema = field(default_factory=PrivacySchema)
    executor: ExecutorSchema = field(default_factory=ExecutorSchema)
    round: RoundSchema = field(default_factory=RoundSchema)
    rounds: int = _MISSING  # type: ignore[assignment]
    local_epochs: int = _MISSING  # type: ignore[assignment]
    batch_size: int = _MISSING  # type: ignore[assignment]
    lr: float = _MISSING  # type: ignore[assignment]
    momentum: float = _MISSING  # type: ignore[assignment]
    max_steps: int | None = None
    seed: int = _MISSING  # type: ignore[assignment]
    evaluate: bool = _MISSING  # type: ignore[assignment]
    baselines: bool = _MISSING  # type: ignore[assignment]
    out: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """How one data set is split: `alpha` is Dirichlet's, `labels_per_site` a count of classes."""

    kind: str
    alpha: float | None
    labels_per_site: int | None

    def __post_init__(self) -> None:
        if self.kind == "dirichlet" and not _positive(self.alpha):
            raise ValueRangeError("partition.alpha", self.alpha, "a number above 0")
        if self.kind == "labels" and not (self.labels_per_site or 0) >= 1:
            raise ValueRangeError(
                "partition.labels_per_site", self.labels_per_site, "a whole number from 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRules:
    """`quorum` counts sites; `deadline_s` is in seconds, per phase."""

    quorum: int
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run, every value in range."""

    task_name: str
    task_parameters: Mapping[str, Scalar]
    task_data: Path | None
    strategy_name: str
    strategy_options: Mapping[str, Any]
    federation_name: str
    sites: tuple[str, ...]
    partition: Partition
    privacy_mode: str
    executor_name: str
    round: RoundRules
    rounds: int
    training: TrainParameters
    seed: int
    evaluate: bool
    baselines: bool
    out: Path | None
    composed_yaml: str


def run_config(values: Mapping[str, Any], composed_yaml: str) -> RunConfig:
    """Check a composed configuration and return it as a value.

    Raises:
        UsageError: an unknown name, a value out of range (names its key), a missing file.
    """
    task = dict(values["task"])
    task_name, data = task.pop("name"), task.pop("data")
    strategy = dict(values["strategy"])
    sites = _sites(values["federation"])
    if values["rounds"] < 1:
        raise ValueRangeError("rounds", values["rounds"], "a whole number from 1")
    if not 0 <= values["seed"] < MAX_SEED:
        raise ValueRangeError("seed", values["seed"], "a whole number from 0 to 2^63 - 1")
    return RunConfig(
        task_name=task_name,
        task_parameters=_check_task(task_name, task),
        task_data=_data_file(data),
        strategy_name=strategy.pop("name"),
        strategy_options=strategy,
        federation_name=values["federation"]["name"],
        sites=sites,
        partition=Partition(**values["partition"]),
        privacy_mode=values["privacy"]["mode"],
        executor_name=values["executor"]["name"],
        round=_round(values["round"], len(sites)),
        rounds=values["rounds"],
        training=TrainParameters(
            local_epochs=values["local_epochs"],
            batch_size=values["batch_size"],
            lr=values["lr"],
            momentum=values["momentum"],
            proximal_mu=0.0,
            max_steps=values["max_steps"],
        ),
        seed=values["seed"],
        evaluate=values["evaluate"],
        baselines=values["baselines"],
        out=Path(values["out"]) if values["out"] else None,
        composed_yaml=composed_yaml,
    )


def _check_task(name: str, parameters: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
    from fedfactory.tasks.table import load_task

    return load_task(name).check(parameters)


def _data_file(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name)
    if not path.is_file():
        raise DataError(f"task.data={name}: there is no such file")
    return path


def _round(values: Mapping[str, Any], count: int) -> RoundRules:
    quorum = values["quorum"] if values["quorum"] is not None else count
    if not 1 <= quorum <= count:
        raise ValueRangeError("round.quorum", quorum, f"a whole number from 1 to {count} (sites)")
    if not _positive(values["deadline_s"]):
        raise ValueRangeError("round.deadline_s", values["deadline_s"], "seconds above 0")
    return RoundRules(quorum=quorum, deadline_s=float(values["deadline_s"]))


def _sites(federation: Mapping[str, Any]) -> tuple[str, ...]:
    if federation["sites"] is None:
        return _numbered(federation["count"])
    sites: Sequence[str] = federation["sites"]
    from site_agents.catalogue import known_sites

    known = known_sites()
    for site in sites:
        if site not in known:
            raise UnknownNameError("site", site, known)
    if not sites or len(set(sites)) != len(sites):
        raise UsageError(f"federation.sites={list(sites)}: expected distinct names, at least one")
    return tuple(sorted(sites))


def _numbered(count: int | None) -> tuple[str, ...]:
    if count is None or not 1 <= count <= 999:
        raise ValueRangeError("federation.count", count, "a whole number from 1 to 999")
    return tuple(f"site-{number:02d}" for number in range(1, count + 1))


def check_site_name(name: str) -> str:
    """Return a site's name if it can be one: lower-case letters, digits, hyphens."""
    if not _SITE_NAME.fullmatch(name):
        raise ValueRangeError("site", name, "lower-case letters, digits and hyphens, at most 63")
    return name


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0
