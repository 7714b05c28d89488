"""What a run is configured to be: the composed configuration, checked, as one value.

Defaults live in conf/, types in run_schema.py, ranges with the values that a plan is made of
(contracts/). Nothing here imports Hydra.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedfactory.choices import OPEN_STRATEGY, choices
from fedfactory.contracts.errors import DataError, UnknownNameError, ValueRangeError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Scalar, TrainParameters
from fedfactory.contracts.plans import Mode, RunTerms, Signature, SignedTerms
from fedfactory.contracts.privacy import PrivacyPlan
from fedfactory.contracts.run_plan import EvaluationRules, RoundRules, RunPlan
from fedfactory.run_rules import (
    central_file,
    evaluation_rules,
    round_rules,
    run_mode,
)
from fedfactory.tasks.table import load_task
from site_agents.catalogue import MAX_NUMBERED, numbered_sites, site_names

PARTITIONS: Final = ("iid", "dirichlet", "labels")
# A strategy may send a site a base with tensors of its own beside the model.
MODEL_ROOM: Final = 1.5
# Stands for arrays that are not made yet.
_NOT_MADE: Final = BlobRef(digest=f"sha256:{'0' * 64}", bytes=1)
_DOTTED: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """How one data set is split: `alpha` is Dirichlet's, `labels_per_site` a count of classes."""

    kind: str
    alpha: float | None
    labels_per_site: int | None

    def __post_init__(self) -> None:
        if self.kind not in PARTITIONS:
            raise UnknownNameError("partition", self.kind, PARTITIONS)
        if self.kind == "dirichlet" and not _positive(self.alpha):
            raise ValueRangeError("partition.alpha", self.alpha, "a number above 0")
        if self.kind == "labels" and not (self.labels_per_site or 0) >= 1:
            raise ValueRangeError(
                "partition.labels_per_site", self.labels_per_site, "a whole number from 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A run, every value in range: what can be checked before it is signed has been.

    `strategy_options` are the strategy's own fields (for `custom`, with `_target_`). `task_data` is
    the user's NPZ, None for the task's bundled set. `out` None means runs/<run id>.
    `evaluate` lets the sites measure each model.
    `model` is what to start from (a safetensors file, or RUN_ID[:ROUND]; None: the task's own),
    `central` the public data to measure on. `composed_yaml` is the configuration as composed, for
    the run folder.
    """

    task_name: str
    task_parameters: Mapping[str, Scalar]
    task_data: Path | None
    strategy_name: str
    strategy_options: Mapping[str, Any]
    sites: tuple[str, ...]
    partition: Partition
    privacy: PrivacyPlan | None
    executor_name: str
    mode: Mode
    rules: RoundRules
    rounds: int
    evaluate: bool
    evaluation: EvaluationRules
    central: Path | None
    model: str | None
    checkpoints: int
    training: TrainParameters
    max_update_norm_l2: float | None
    max_examples: Mapping[str, int]
    seed: int
    baselines: bool
    out: Path | None
    composed_yaml: str

    def __post_init__(self) -> None:
        self.draft()

    def terms(
        self, *, coordinator: str, run_id: str, initial: BlobRef, nonce: str, not_after: float
    ) -> RunTerms:
        """Return what the operator signs: all that this run may ask. `not_after`: Unix seconds."""
        return RunTerms(
            coordinator=coordinator,
            run_id=run_id,
            sites=tuple(sorted(self.sites)),
            task=self.task_name,
            task_parameters=self.task_parameters,
            initial=initial,
            strategy=self.strategy_name,
            strategy_options=self.strategy_options,
            mode=self.mode,
            training=self.training,
            rounds=self.rounds,
            evaluate=self.evaluate,
            privacy=self.privacy,
            max_model_bytes=int(MODEL_ROOM * initial.bytes),
            max_update_norm_l2=self.max_update_norm_l2,
            nonce=nonce,
            not_after=not_after,
        )

    def plan(self, signed: SignedTerms, central: BlobRef | None) -> RunPlan:
        """Return the run's plan around its signed terms; `central` is the public data set."""
        return RunPlan(
            signed=signed,
            seed=self.seed,
            rules=self.rules,
            evaluation=self.evaluation,
            central=central,
            checkpoints=self.checkpoints,
            max_examples=self.max_examples,
        )

    def draft(self) -> RunPlan:
        """Return the plan before anything is made or signed. Raises UsageError: names the key."""
        terms = self.terms(coordinator="", run_id="", initial=_NOT_MADE, nonce="", not_after=0.0)
        signed = SignedTerms(terms=terms, signature=Signature(public_key="", value=""))
        return self.plan(signed, None if self.central is None else _NOT_MADE)


def run_config(
    values: Mapping[str, Any], composed_yaml: str, *, sites: tuple[str, ...] | None = None
) -> RunConfig:
    """Check a composed configuration and return it as a value.

    `sites` are those that take part; None: those that the group `federation` names.

    Raises:
        UsageError: an unknown name, a value out of range (names its key), a missing file.
    """
    task = dict(values["task"])
    task_name, data = task.pop("name"), task.pop("data", None)
    strategy = dict(values["strategy"])
    strategy_name = strategy.pop("name")
    partition = values["partition"]
    sites = _sites(values["federation"]) if sites is None else sites
    privacy = privacy_plan(values["privacy"])
    mode = run_mode(values["rounds"])
    # Under differential privacy an evaluation is a release of its own, if it is paid for.
    unpaid = privacy is not None and privacy.evaluation_noise_multiplier is None
    evaluate = values["evaluate"] and not unpaid
    central = central_file(values["evaluation"]["central"])
    known = load_task(task_name)
    task_parameters = known.check(task)
    return RunConfig(
        task_name=task_name,
        task_parameters=task_parameters,
        task_data=_data_file(data),
        strategy_name=strategy_name,
        strategy_options=_strategy_options(strategy_name, strategy),
        sites=sites,
        partition=Partition(
            kind=partition["kind"],
            alpha=partition.get("alpha"),
            labels_per_site=partition.get("labels_per_site"),
        ),
        privacy=privacy,
        executor_name=_known("executor", values["executor"]["name"]),
        mode=mode,
        rules=round_rules(values["rounds"], sites),
        rounds=values["rounds"]["number"],
        evaluate=evaluate,
        evaluation=evaluation_rules(values["evaluation"], known.reports(task_parameters)),
        central=central,
        model=values["model"],
        checkpoints=values["checkpoints"],
        training=TrainParameters(
            local_epochs=values["local_epochs"],
            batch_size=values["batch_size"],
            lr=values["lr"],
            momentum=values["momentum"],
            proximal_mu=0.0,
            max_steps=values["max_steps"],
        ),
        max_update_norm_l2=values["max_update_norm_l2"],
        max_examples=_max_examples(values["max_examples"], sites),
        seed=values["seed"],
        baselines=values["baselines"],
        out=Path(values["out"]) if values["out"] is not None else None,
        composed_yaml=composed_yaml,
    )


def privacy_plan(values: Mapping[str, Any]) -> PrivacyPlan | None:
    """Return what a `privacy` group asks of the sites, None for nothing.

    Raises:
        UsageError: an unknown mode, or a value out of range (names its key).
    """
    fields = dict(values)
    mode = _known("privacy", fields.pop("mode"))
    if mode == "none":
        return None
    return PrivacyPlan(**fields)


def _max_examples(value: object, sites: Sequence[str]) -> dict[str, int]:
    """Return the most examples that each site may count: one number for all, or by site."""
    found = value if isinstance(value, Mapping) else {} if value is None else None
    if found is None:
        found = dict.fromkeys(sites, value)
    for site, most in found.items():
        if type(most) is not int:
            key = "max_examples" if not isinstance(value, Mapping) else f"max_examples.{site}"
            raise ValueRangeError(key, most, "a whole number, {SITE: number}, or null")
    return dict(found)


def _known(group: str, name: str) -> str:
    if name not in choices(group):
        raise UnknownNameError(group, name, choices(group))
    return name


def _whole(key: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ValueRangeError(key, value, f"a whole number from {low} to {high}")
    return value


def _data_file(name: object) -> Path | None:
    if name is None:
        return None
    if not isinstance(name, str):
        raise ValueRangeError("task.data", name, "the path of an NPZ file, or null")
    path = Path(name)
    if not path.is_file():
        raise DataError(f"task.data={name}: there is no such file; expected an NPZ with x and y")
    return path


def _strategy_options(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    target = options.get("_target_")
    if name == OPEN_STRATEGY and not (isinstance(target, str) and _DOTTED.fullmatch(target)):
        raise ValueRangeError(
            "strategy._target_", target, "package.module.Class, of Flower's or your own"
        )
    for key, value in options.items():
        items = value if isinstance(value, list) else [value]
        if not all(
            isinstance(item, str | int | float | bool | None) and _finite(item) for item in items
        ):
            raise ValueRangeError(
                f"strategy.{key}", value, "a text, a finite number, true, false, null, or a list"
            )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def _sites(federation: Mapping[str, Any]) -> tuple[str, ...]:
    if "count" in federation:
        return numbered_sites(_whole("federation.count", federation["count"], 1, MAX_NUMBERED))
    sites: Sequence[str] = federation["sites"]
    known = site_names()
    for site in sites:
        if site not in known:
            raise UnknownNameError("site", site, known)
    if not sites or len(set(sites)) != len(sites):
        found = f"[{','.join(sites)}]"
        raise ValueRangeError("federation.sites", found, "distinct names, at least one")
    return tuple(sorted(sites))


def _positive(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _finite(value: Scalar) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
