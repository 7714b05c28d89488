"""What a site's policy says, as values. Pure; where it is written down is the reader's matter.

The keys in errors and verdicts are the dotted keys of policy.yaml (docs/policy.md shows it whole).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Final, Literal

from fedfactory.contracts.bounds import MOST
from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.errors import ValueRangeError
from fedfactory.contracts.orders import Scalar, TrainParameters
from site_agents.policy.holds import DEFAULT_HOLDS, Holds
from site_agents.policy.pins import OperatorPin, is_date

EgressMode = Literal["automatic", "first_round", "every_round", "final_only"]
EGRESS_MODES: Final[tuple[EgressMode, ...]] = (
    "automatic",
    "first_round",
    "every_round",
    "final_only",
)
LogsMode = Literal["none", "outcomes"]
LOGS_MODES: Final[tuple[LogsMode, ...]] = ("none", "outcomes")
TRAINING_KEYS: Final = tuple(field.name for field in fields(TrainParameters))
MAX_NAME: Final = 100
MAX_REASON: Final = 1000
MINUTES_OF_DAY: Final = 24 * 60
_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Range:
    """A number from `low` to `high`, both included."""

    low: float
    high: float

    def accepts(self, value: Scalar) -> bool:
        """Whether `value` is a number (no bool) in the range."""
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        )

    def expected(self) -> str:
        """Say what is accepted."""
        return f"from {self.low!r} to {self.high!r}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few values."""

    values: tuple[Scalar, ...]

    def accepts(self, value: Scalar) -> bool:
        """Whether `value` is one of them; true is not 1."""
        return any(
            value == known and isinstance(value, bool) == isinstance(known, bool)
            for known in self.values
        )

    def expected(self) -> str:
        """Say what is accepted."""
        return "one of " + ", ".join(ascii(value) for value in self.values)


Allowed = Range | OneOf


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRule:
    """What a data set is to the privacy ledger.

    `lineage` names the population whose budget it draws on. `public_size` counts its units and may
    be known to everyone. `unit` is "row", or the column whose value all rows of one unit share.
    """

    lineage: str
    public_size: int
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRule:
    """Which data set serves a task; parameters that are not named are as the task's schema says."""

    source: str
    parameters: Mapping[str, Allowed]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgedRisk:
    """Who accepted that updates without differential privacy can reveal records, when, and why.

    `on` is a date, YYYY-MM-DD.
    """

    by: str
    on: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutDp:
    """What holds for runs without differential privacy, where the site allows them.

    An order works on at least `min_examples` records; one of training takes at least
    `min_local_steps` optimiser steps, because a single step's update shows its batch most clearly.
    """

    acknowledged_risk: AcknowledgedRisk
    min_examples: int
    min_local_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """When orders are taken: from `start` to before `end`, minutes of the day in `time_zone`.

    A window whose end is before its start goes over midnight.
    """

    start: int
    end: int
    time_zone: str

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day (0..1439, in `time_zone`) lies in the window."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def text(self) -> str:
        """Return the window as policy.yaml writes it."""
        return f"{_clock(self.start)}-{_clock(self.end)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What this site allows.

    `coordinators` maps names to fingerprints of public keys, `operators` to pins; a coordinator's
    orders carry its name. `strategies` are those that runs may use (a custom one by its class),
    None for any. `max_base_abs` bounds |value| in the base model's floating-point tensors, by
    patterns of their names (fnmatch); every pattern that matches counts. `metrics` maps each metric
    that may leave to the granularity it is rounded to (0: as it is). `without_dp` is None where
    differential privacy is required. Epsilons are caps at `delta`. `max_evaluations`, `rounds` and
    `gpu_hours_per_run` count per run. `logs` says what an operator may read of the site's own
    record of a run.

    Raises:
        ValueRangeError: a value is out of range, or values do not fit each other; `key` names it.
    """

    coordinators: Mapping[str, str]
    operators: Mapping[str, OperatorPin]
    data: Mapping[str, DataRule]
    tasks: Mapping[str, TaskRule]
    training: Mapping[str, Range]
    strategies: tuple[str, ...] | None
    without_dp: WithoutDp | None
    epsilon_per_run: float
    epsilon_per_lineage: float
    delta: float
    max_evaluations: int
    metrics: Mapping[str, float]
    rounds: int
    gpu_hours_per_run: float
    hours: Hours | None
    max_model_bytes: int
    max_base_abs: Mapping[str, float]
    egress: EgressMode
    logs: LogsMode
    holds: Holds = DEFAULT_HOLDS

    def __post_init__(self) -> None:
        _check_keys(self)
        _check_data(self)
        _check_tasks(self)
        _check_privacy(self)
        _check_limits(self)

    @property
    def dp_required(self) -> bool:
        """Whether every order must ask for differential privacy."""
        return self.without_dp is None

    @property
    def version(self) -> str:
        """Digest of what the policy says ('sha256:<hex>'); comments and layout do not count."""
        return digest_of(self)

    def source_for(self, task: str) -> str | None:
        """Return the name of the data set that serves a task, None if the task is not allowed."""
        rule = self.tasks.get(task)
        return None if rule is None else rule.source


def _check_keys(policy: Policy) -> None:
    for name, key in policy.coordinators.items():
        _name("coordinators", name)
        _key(f"coordinators.{name}", key)
    for name, pin in policy.operators.items():
        _name("operators", name)
        _key(f"operators.{name}.key", pin.key)
        _date(f"operators.{name}.until", pin.until)
        if pin.confirmed is not None:
            _name(f"operators.{name}.confirmed.by", pin.confirmed.by)
            _date(f"operators.{name}.confirmed.on", pin.confirmed.on)


def _check_data(policy: Policy) -> None:
    for name, rule in policy.data.items():
        _name("data", name)
        _name(f"data.{name}.lineage", rule.lineage)
        _whole(f"data.{name}.public_size", rule.public_size, 1)
        _name(f"data.{name}.unit", rule.unit)


def _check_tasks(policy: Policy) -> None:
    for name, rule in policy.tasks.items():
        _name("tasks", name)
        if rule.source not in policy.data:
            near = get_close_matches(rule.source, policy.data, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueRangeError(f"tasks.{name}.source", rule.source, f"a name under data{hint}")
        for parameter, allowed in rule.parameters.items():
            _name(f"tasks.{name}.parameters", parameter)
            _allowed(f"tasks.{name}.parameters.{parameter}", allowed)
    for key, limits in policy.training.items():
        if key not in TRAINING_KEYS:
            raise ValueRangeError("training", key, f"one of {', '.join(TRAINING_KEYS)}")
        _allowed(f"training.{key}", limits)
    for name in policy.strategies or ():
        _name("strategies", name)
    if policy.strategies is not None and not policy.strategies:
        raise ValueRangeError("strategies", "[]", "at least one strategy, or any")


def _check_privacy(policy: Policy) -> None:
    for key in ("epsilon_per_run", "epsilon_per_lineage"):
        _above_zero(f"privacy.{key}", getattr(policy, key))
    if policy.epsilon_per_run > policy.epsilon_per_lineage:
        raise ValueRangeError(
            "privacy.epsilon_per_run",
            policy.epsilon_per_run,
            f"at most privacy.epsilon_per_lineage, {policy.epsilon_per_lineage:g}",
        )
    if not 0 < policy.delta < 1:
        raise ValueRangeError("privacy.delta", policy.delta, "a number between 0 and 1")
    _whole("privacy.max_evaluations", policy.max_evaluations, 0)
    for name, granularity in policy.metrics.items():
        _name("metrics", name)
        if not (math.isfinite(granularity) and granularity >= 0):
            raise ValueRangeError(f"metrics.{name}", granularity, "a number from 0")
    if policy.without_dp is not None:
        _check_without_dp(policy.without_dp)


def _check_without_dp(rule: WithoutDp) -> None:
    risk = rule.acknowledged_risk
    _name("privacy.acknowledged_risk.by", risk.by)
    _date("privacy.acknowledged_risk.on", risk.on)
    if not (risk.reason.strip() and len(risk.reason) <= MAX_REASON):
        raise ValueRangeError("privacy.acknowledged_risk.reason", "", "a sentence that says why")
    _whole("privacy.min_examples", rule.min_examples, 1)
    _whole("privacy.min_local_steps", rule.min_local_steps, 1)


def _check_limits(policy: Policy) -> None:
    _whole("limits.rounds", policy.rounds, 1)
    _above_zero("limits.gpu_hours_per_run", policy.gpu_hours_per_run)
    _whole("limits.max_model_bytes", policy.max_model_bytes, 1)
    for pattern, bound in policy.max_base_abs.items():
        _name("limits.max_base_abs", pattern)
        _above_zero(f"limits.max_base_abs.{pattern}", bound)
    if policy.hours is not None:
        start, end = policy.hours.start, policy.hours.end
        if not (0 <= start < MINUTES_OF_DAY and 0 < end <= MINUTES_OF_DAY and start != end):
            raise ValueRangeError(
                "limits.hours", policy.hours.text(), "two times of day, as in 20:00-06:00, or any"
            )
        _name("limits.time_zone", policy.hours.time_zone)
    if policy.egress not in EGRESS_MODES:
        raise ValueRangeError("egress", policy.egress, f"one of {', '.join(EGRESS_MODES)}")
    if policy.logs not in LOGS_MODES:
        raise ValueRangeError("logs", policy.logs, f"one of {', '.join(LOGS_MODES)}")


def _allowed(key: str, allowed: Allowed) -> None:
    if isinstance(allowed, OneOf):
        if not allowed.values:
            raise ValueRangeError(key, "[]", "at least one allowed value")
    elif not (
        math.isfinite(allowed.low) and math.isfinite(allowed.high) and allowed.low <= allowed.high
    ):
        raise ValueRangeError(key, allowed.expected(), "from a number to the same or a larger one")


def _name(key: str, name: str) -> None:
    if not (0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()):
        raise ValueRangeError(key, ascii(name), f"a name of 1 to {MAX_NAME} printable characters")


def _key(key: str, found: str) -> None:
    if not _FINGERPRINT.fullmatch(found):
        raise ValueRangeError(key, ascii(found), "a key's fingerprint, sha256:<64 hex digits>")


def _date(key: str, found: str) -> None:
    if not is_date(found):
        raise ValueRangeError(key, ascii(found), "a day, YYYY-MM-DD")


def _whole(key: str, value: int, low: int) -> None:
    if not low <= value <= MOST:  # as the numbers that leave are bounded
        raise ValueRangeError(key, value, f"a whole number from {low}, at most 2^53")


def _above_zero(key: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueRangeError(key, value, "a number above 0")


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
