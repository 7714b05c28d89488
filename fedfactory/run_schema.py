"""The types Hydra holds a run's YAML and overrides against. Values and defaults live in conf/.

Each choice of a group has a schema of its own, so that a key another choice knows is an error and
never ignored. Task and strategy keys are typed by the task's parameters and the strategy's fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from omegaconf import MISSING


@dataclass
class NamedFederation:
    """Sites of the catalogue."""

    name: str = MISSING
    sites: list[str] = MISSING


@dataclass
class NumberedFederation:
    """site-01, site-02, ... up to `count`."""

    name: str = MISSING
    count: int = MISSING


@dataclass
class IidPartition:
    """Random shares of one size."""

    kind: str = MISSING


@dataclass
class DirichletPartition:
    """Each class spread by a Dirichlet draw of parameter `alpha`."""

    kind: str = MISSING
    alpha: float = MISSING


@dataclass
class LabelsPartition:
    """`labels_per_site` classes at each site."""

    kind: str = MISSING
    labels_per_site: int = MISSING


@dataclass
class NoPrivacy:
    """Nothing is asked of the sites."""

    mode: str = MISSING


@dataclass
class DpSgd:
    """DP-SGD at every site."""

    mode: str = MISSING
    target_epsilon: float | None = MISSING
    noise_multiplier: float | None = MISSING
    delta: float = MISSING
    clip_norm_l2: float = MISSING
    grad_sample_mode: str = MISSING
    evaluation_noise_multiplier: float | None = MISSING
    evaluation_loss_clip: float = MISSING


@dataclass
class ExecutorSchema:
    """How a site runs its work."""

    name: str = MISSING


@dataclass
class RoundsSchema:
    """Who is asked in a round, when it counts, and how long it waits."""

    number: int = MISSING
    mode: str = MISSING
    quorum: Any = MISSING
    required: list[str] = MISSING
    deadline_s: float = MISSING
    lateness_s: float = MISSING
    retries: int = MISSING
    select: str = MISSING
    per_round: Any = MISSING
    extra: int = MISSING
    buffer: int | None = MISSING


@dataclass
class EvaluationSchema:
    """How models are judged."""

    metric: str = MISSING
    central: str | None = MISSING
    patience: int | None = MISSING
    min_delta: float = MISSING
    keep: str = MISSING


@dataclass
class RunSchema:
    """conf/run.yaml."""

    task: Any = MISSING
    strategy: Any = MISSING
    federation: Any = MISSING
    partition: Any = MISSING
    privacy: Any = MISSING
    executor: Any = MISSING
    rounds: RoundsSchema = MISSING
    evaluation: EvaluationSchema = MISSING
    model: str | None = MISSING
    checkpoints: int = MISSING
    local_epochs: int = MISSING
    batch_size: int = MISSING
    lr: float = MISSING
    momentum: float = MISSING
    max_steps: int | None = MISSING
    max_update_norm_l2: float | None = MISSING
    max_examples: Any = MISSING
    seed: int = MISSING
    evaluate: bool = MISSING
    baselines: bool = MISSING
    out: str | None = MISSING


# 'group/choice' -> its schema; conf/<group>/<choice>.yaml names it in its defaults.
CHOICE_SCHEMAS: Final[Mapping[str, type]] = {
    "federation/all_ai_factories": NamedFederation,
    "federation/demo": NamedFederation,
    "federation/first_seven": NamedFederation,
    "federation/numbered": NumberedFederation,
    "federation/third_wave": NamedFederation,
    "partition/iid": IidPartition,
    "partition/dirichlet": DirichletPartition,
    "partition/labels": LabelsPartition,
    "privacy/none": NoPrivacy,
    "privacy/dp_sgd": DpSgd,
    "executor/local": ExecutorSchema,
}
