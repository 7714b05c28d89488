"""Writes a policy as the commented YAML that an administrator goes on from. Pure.

What it writes, the reader reads back as the same policy. The defaults are what a site begins with:
nothing that it did not choose, and differential privacy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import yaml

from fedfactory.contracts.orders import Scalar
from site_agents.policy.holds import DEFAULT_HOLDS, Holds, section_lines
from site_agents.policy.pins import OperatorPin
from site_agents.policy.reader import ANY_HOUR, ANY_STRATEGY
from site_agents.policy.values import (
    Allowed,
    DataRule,
    EgressMode,
    Hours,
    LogsMode,
    OneOf,
    Policy,
    Range,
    TaskRule,
    WithoutDp,
)

DEFAULT_TRAINING: Final[Mapping[str, Range]] = {
    "local_epochs": Range(1, 20),
    "batch_size": Range(1, 4096),
}
# No trained network holds such a weight; a base that does is meant to break the site's arithmetic.
DEFAULT_MAX_BASE_ABS: Final[Mapping[str, float]] = {"*": 1e6}
DEFAULT_METRICS: Final[Mapping[str, float]] = {"loss": 0.0001, "accuracy": 0.0001, "mae": 0.0001}
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_/-]*(\.[A-Za-z0-9_/-]+)*")
_NOT_PLAIN: Final = ("true", "false", "null")


def policy_text(
    *,
    coordinators: Mapping[str, str],
    operators: Mapping[str, OperatorPin],
    data: Mapping[str, DataRule],
    tasks: Mapping[str, str | TaskRule],
    without_dp: WithoutDp | None = None,
    epsilon_per_run: float = 3.0,
    epsilon_per_lineage: float = 10.0,
    delta: float = 1e-5,
    max_evaluations: int = 200,
    training: Mapping[str, Range] = DEFAULT_TRAINING,
    strategies: tuple[str, ...] | None = None,
    metrics: Mapping[str, float] = DEFAULT_METRICS,
    rounds: int = 200,
    gpu_hours_per_run: float = 24.0,
    hours: Hours | None = None,
    max_model_bytes: int = 2_000_000_000,
    max_base_abs: Mapping[str, float] = DEFAULT_MAX_BASE_ABS,
    egress: EgressMode = "automatic",
    logs: LogsMode = "none",
    holds: Holds = DEFAULT_HOLDS,
) -> str:
    """Return the text of a policy.yaml for a site's choices.

    `coordinators` maps names to key fingerprints, `operators` to pins, `tasks` each task to its
    rule, or to the name of its data set in `data`. `without_dp` allows runs without differential
    privacy.

    Raises:
        ValueRangeError: a choice is out of range, or choices do not fit each other.
    """
    return render(
        Policy(
            coordinators=coordinators,
            operators=operators,
            data=data,
            tasks={
                task: rule if isinstance(rule, TaskRule) else TaskRule(source=rule, parameters={})
                for task, rule in tasks.items()
            },
            training=training,
            strategies=strategies,
            without_dp=without_dp,
            epsilon_per_run=epsilon_per_run,
            epsilon_per_lineage=epsilon_per_lineage,
            delta=delta,
            max_evaluations=max_evaluations,
            metrics=metrics,
            rounds=rounds,
            gpu_hours_per_run=gpu_hours_per_run,
            hours=hours,
            max_model_bytes=max_model_bytes,
            max_base_abs=max_base_abs,
            egress=egress,
            logs=logs,
            holds=holds,
        )
    )


def render(policy: Policy) -> str:
    """Return a policy as commented YAML."""
    return "\n".join(
        [
            "# What is allowed at this site. Read again at each order: a change takes effect at",
            "# the next one, and an agent whose policy does not hold takes no work. Unknown keys",
            "# are errors. `site-agent policy check` reads it, docs/policy.md explains it.",
            "",
            "# Who may ask: the name that orders carry, and the fingerprint of the key that signs.",
            *_section("coordinators", [_entry(n, k) for n, k in policy.coordinators.items()]),
            "# Whose signature over a run's plan counts, to the end of which day (UTC), and who of",
            "# this site compared the fingerprint with what `fedfactory whoami` shows them:",
            "# `site-agent policy confirm-operator NAME FINGERPRINT` writes both.",
            *_section(
                "operators", [f"{_word(n)}: {pin_text(p)}" for n, p in policy.operators.items()]
            ),
            "",
            *_data(policy),
            "",
            *_tasks(policy),
            "",
            "# How much training in one round; what is not named is as the task allows.",
            *_section("training", [f"{k}: {_allowed(v)}" for k, v in policy.training.items()]),
            "",
            "# The strategies that runs may use: any, or [fedavg, fedprox]; a custom one by class.",
            f"strategies: {_strategies(policy)}",
            "",
            *_privacy(policy),
            "",
            "# The metrics that may leave, each rounded to a multiple of its number (0: as it is).",
            *_section("metrics", [f"{_word(n)}: {g!r}" for n, g in policy.metrics.items()]),
            "",
            *_limits(policy),
            "",
            "# What leaves, leaves by itself: automatic. A person approves the first result of a",
            "# run: first_round; every result: every_round; the last round's alone: final_only.",
            f"egress: {policy.egress}",
            "",
            "# What an operator may read of this site's own record of a run: none, or outcomes:",
            "# when work began, and how it ended (an update, or a refusal's code). Never a text.",
            f"logs: {policy.logs}",
            "",
        ]
    )


def pin_text(pin: OperatorPin) -> str:
    """Return an operator's pin as policy.yaml writes it."""
    said = f"key: {_word(pin.key)}, until: {_word(pin.until)}"
    if (confirmed := pin.confirmed) is not None:
        said += f", confirmed: {{by: {_word(confirmed.by)}, on: {_word(confirmed.on)}}}"
    return f"{{{said}}}"


def _data(policy: Policy) -> list[str]:
    rows = [
        f"{_word(name)}: {{lineage: {_word(rule.lineage)}, public_size: {rule.public_size},"
        f" unit: {_word(rule.unit)}}}"
        for name, rule in policy.data.items()
    ]
    return [
        "# The data sets of agent.yaml. lineage: the population whose privacy budget is used; data",
        "# that may share records shares a lineage. public_size: how many units it has, a number",
        "# that may be known to everyone. unit: row, or the column that tells whose the rows are.",
        *_section("data", rows),
    ]


def _tasks(policy: Policy) -> list[str]:
    lines = [
        "# The tasks that may run, and the data set that serves each. Parameters may be narrowed:",
        "# parameters: {model: [mlp, cnn], hidden: {from: 16, to: 512}}. With differential privacy",
        "# each one that describes data (columns, label, window) has exactly one value here.",
    ]
    rows = []
    for name, rule in policy.tasks.items():
        ranges = ", ".join(f"{_word(k)}: {_allowed(v)}" for k, v in rule.parameters.items())
        below = f", parameters: {{{ranges}}}" if ranges else ""
        rows.append(f"{_word(name)}: {{source: {_word(rule.source)}{below}}}")
    return lines + _section("tasks", rows)


def _privacy(policy: Policy) -> list[str]:
    lines = [
        "# required: every run asks for differential privacy. optional needs acknowledged_risk,",
        "# min_examples and min_local_steps, for without it updates can reveal records.",
        "privacy:",
    ]
    if (rule := policy.without_dp) is None:
        lines.append("  dp: required")
    else:
        risk = rule.acknowledged_risk
        lines += [
            "  dp: optional",
            "  acknowledged_risk:",
            f"    by: {_word(risk.by)}",
            f"    on: {_word(risk.on)}",
            f"    reason: {_word(risk.reason)}",
            "  # Records of each work: of the training part; in an evaluation, of the test part.",
            f"  min_examples: {rule.min_examples}",
            f"  min_local_steps: {rule.min_local_steps}",
        ]
    return [
        *lines,
        "  # Caps on epsilon at this delta: for one run, and for all runs ever of one lineage.",
        f"  epsilon_per_run: {policy.epsilon_per_run!r}",
        f"  epsilon_per_lineage: {policy.epsilon_per_lineage!r}",
        f"  delta: {policy.delta!r} # well below 1 / public_size",
        f"  max_evaluations: {policy.max_evaluations} # of one run",
        *section_lines("privacy", policy.holds),
    ]


def _limits(policy: Policy) -> list[str]:
    hours = policy.hours
    return [
        "limits:",
        f"  rounds: {policy.rounds}",
        f"  gpu_hours_per_run: {policy.gpu_hours_per_run!r}",
        "  # When orders are taken: any, or a window as in 20:00-06:00 and time_zone: Europe/Paris",
        f'  hours: "{hours.text() if hours else ANY_HOUR}"',
        *([f"  time_zone: {_word(hours.time_zone)}"] if hours else []),
        f"  max_model_bytes: {policy.max_model_bytes}",
        "  # The largest |value| in the base model's tensors, by patterns of their names.",
        f"  max_base_abs: {{{_bounds(policy)}}}",
        *section_lines("limits", policy.holds),
    ]


def _strategies(policy: Policy) -> str:
    if policy.strategies is None:
        return ANY_STRATEGY
    return "[" + ", ".join(_word(name) for name in policy.strategies) + "]"


def _bounds(policy: Policy) -> str:
    return ", ".join(f"{_word(p)}: {float(b)!r}" for p, b in policy.max_base_abs.items())


def _section(name: str, rows: Sequence[str]) -> list[str]:
    return [f"{name}:", *(f"  {row}" for row in rows)] if rows else [f"{name}: {{}}"]


def _entry(name: str, value: str) -> str:
    return f"{_word(name)}: {_word(value)}"


def _allowed(allowed: Allowed) -> str:
    if isinstance(allowed, OneOf):
        return "[" + ", ".join(_scalar(value) for value in allowed.values) + "]"
    return f"{{from: {allowed.low!r}, to: {allowed.high!r}}}"


def _scalar(value: Scalar) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return _word(value) if isinstance(value, str) else repr(value)


def _word(text: str) -> str:
    """Return a text plain where no reader could take it for anything else, else quoted."""
    if _PLAIN.fullmatch(text) and text.lower() not in _NOT_PLAIN:
        return text
    return str(yaml.safe_dump(text, default_style='"', width=10**9)).strip()
