"""Reads a policy from the text of policy.yaml. Pure; every error says line, column and key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from fedfactory.contracts.errors import ValueRangeError
from site_agents.policy.holds import keys_of, read_holds
from site_agents.policy.nodes import Place, Source
from site_agents.policy.pins import Confirmation, OperatorPin
from site_agents.policy.values import (
    EGRESS_MODES,
    LOGS_MODES,
    TRAINING_KEYS,
    AcknowledgedRisk,
    Allowed,
    DataRule,
    Hours,
    OneOf,
    Policy,
    Range,
    TaskRule,
    WithoutDp,
)

ANY_HOUR: Final = "any"
ANY_STRATEGY: Final = "any"
_SECTIONS: Final = (
    "coordinators",
    "operators",
    "data",
    "tasks",
    "training",
    "privacy",
    "metrics",
    "limits",
    "egress",
)
_LIMITS: Final = ("rounds", "gpu_hours_per_run", "hours", "max_model_bytes")
_CAPS: Final = ("epsilon_per_run", "epsilon_per_lineage", "delta", "max_evaluations")
_WITHOUT_DP: Final = ("acknowledged_risk", "min_examples", "min_local_steps")
_WINDOW: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")


def parse_policy(text: str, *, name: str, known_zone: Callable[[str], bool]) -> Policy:
    """Return the policy that a text says; `name` is the file's, for errors.

    `known_zone` tells whether there is a time zone of that name.

    Raises:
        PolicyFileError: no YAML; a key that is unknown, missing or there twice; a wrong value.
    """
    source = Source(name)
    try:
        return _policy(source.read(text), known_zone)
    except ValueRangeError as error:
        raise source.out_of_range(error) from error


def _policy(root: Place, known_zone: Callable[[str], bool]) -> Policy:
    at = root.fields(_SECTIONS, ("logs", "strategies"))
    privacy = at["privacy"].fields(_CAPS, ("dp", *_WITHOUT_DP, *keys_of("privacy")))
    limits = at["limits"].fields(_LIMITS, ("time_zone", "max_base_abs", *keys_of("limits")))
    return Policy(
        coordinators={name: key.text() for name, key in at["coordinators"].entries().items()},
        operators={name: _pin(place) for name, place in at["operators"].entries().items()},
        data={name: _data(place) for name, place in at["data"].entries().items()},
        tasks={name: _task(place) for name, place in at["tasks"].entries().items()},
        training=_training(at["training"]),
        strategies=_strategies(at["strategies"]) if "strategies" in at else None,
        without_dp=_without_dp(at["privacy"], privacy),
        epsilon_per_run=privacy["epsilon_per_run"].number(),
        epsilon_per_lineage=privacy["epsilon_per_lineage"].number(),
        delta=privacy["delta"].number(),
        max_evaluations=privacy["max_evaluations"].whole(),
        metrics={name: place.number() for name, place in at["metrics"].entries().items()},
        rounds=limits["rounds"].whole(),
        gpu_hours_per_run=limits["gpu_hours_per_run"].number(),
        hours=_hours(at["limits"], limits, known_zone),
        max_model_bytes=limits["max_model_bytes"].whole(),
        max_base_abs=_bounds(limits["max_base_abs"]) if "max_base_abs" in limits else {},
        egress=at["egress"].word(EGRESS_MODES),
        logs=at["logs"].word(LOGS_MODES) if "logs" in at else "none",
        holds=read_holds({"limits": limits, "privacy": privacy}),
    )


def _pin(place: Place) -> OperatorPin:
    if not place.is_mapping():
        raise place.wrong('key and until, as in {key: "sha256:...", until: "2027-12-31"}')
    at = place.fields(("key", "until"), ("confirmed",))
    return OperatorPin(
        key=at["key"].text(),
        until=at["until"].text(),
        confirmed=_confirmation(at["confirmed"]) if "confirmed" in at else None,
    )


def _confirmation(place: Place) -> Confirmation:
    at = place.fields(("by", "on"))
    return Confirmation(by=at["by"].text(), on=at["on"].text())


def _data(place: Place) -> DataRule:
    at = place.fields(("lineage", "public_size", "unit"))
    return DataRule(
        lineage=at["lineage"].text(),
        public_size=at["public_size"].whole(),
        unit=at["unit"].text(),
    )


def _task(place: Place) -> TaskRule:
    at = place.fields(("source",), ("parameters",))
    parameters = at["parameters"].entries() if "parameters" in at else {}
    return TaskRule(
        source=at["source"].text(),
        parameters={name: _allowed(value) for name, value in parameters.items()},
    )


def _allowed(place: Place) -> Allowed:
    if place.is_list():
        return OneOf(tuple(item.scalar() for item in place.items()))
    return _range(place)


def _range(place: Place) -> Range:
    at = place.fields(("from", "to"))
    return Range(at["from"].number(), at["to"].number())


def _training(place: Place) -> dict[str, Range]:
    return {key: _range(value) for key, value in place.fields((), TRAINING_KEYS).items()}


def _strategies(place: Place) -> tuple[str, ...] | None:
    if place.is_list():
        return tuple(item.text() for item in place.items())
    if place.text() != ANY_STRATEGY:
        raise place.wrong(f"a list of strategies, as in [fedavg, fedprox], or {ANY_STRATEGY}")
    return None


def _bounds(place: Place) -> dict[str, float]:
    return {pattern: bound.number() for pattern, bound in place.entries().items()}


def _without_dp(section: Place, at: Mapping[str, Place]) -> WithoutDp | None:
    """Return what holds without differential privacy, None where it is required: the default."""
    if "dp" not in at or at["dp"].word(("required", "optional")) == "required":
        return None
    if missing := [key for key in _WITHOUT_DP if key not in at]:
        raise section.wrong(
            f"{', '.join(missing)}, because dp is optional: without differential privacy updates"
            " can reveal records"
        )
    risk = at["acknowledged_risk"].fields(("by", "on", "reason"))
    return WithoutDp(
        acknowledged_risk=AcknowledgedRisk(
            by=risk["by"].text(), on=risk["on"].text(), reason=risk["reason"].text()
        ),
        min_examples=at["min_examples"].whole(),
        min_local_steps=at["min_local_steps"].whole(),
    )


def _hours(
    section: Place, at: Mapping[str, Place], known_zone: Callable[[str], bool]
) -> Hours | None:
    zone = at["time_zone"].text() if "time_zone" in at else None
    if zone is not None and not known_zone(zone):
        raise at["time_zone"].wrong(
            f"a time zone that this machine knows, as in Europe/Madrid or UTC; found {zone!a}"
        )
    text = at["hours"].text()
    if text == ANY_HOUR:
        return None
    window = _WINDOW.fullmatch(text)
    if window is None:
        raise at["hours"].wrong(f"two times of day, as in 20:00-06:00, or any; found {text!a}")
    if zone is None:
        raise section.wrong("time_zone, because hours names times of day")
    start_hour, start_minute, end_hour, end_minute = map(int, window.groups())
    return Hours(
        start=60 * start_hour + start_minute, end=60 * end_hour + end_minute, time_zone=zone
    )
