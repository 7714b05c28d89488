"""What a coordinator is told: conf/coordinator.yaml, HOME/coordinator.yaml, overrides, one value.

The three are merged in that order by OmegaConf; types live in coordinator_schema.py, ranges here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

from fedfactory.contracts.errors import (
    FedfactoryError,
    UnknownNameError,
    UsageError,
    ValueRangeError,
)
from fedfactory.identity.roles import Peer, Role

COORDINATOR_FILE: Final = "coordinator.yaml"
MAX_PORT: Final = 65535
_FORMS: Final = {"str": "a text", "int": "a whole number", "float": "a number"}
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "runs_at_once": (1, 1000),
    "queue": (0, 100_000),
    "max_model_bytes": (1, 2**50),
    "max_rounds": (1, 10**9),
    "max_sites": (1, 100_000),
    "certificate_days": (0.0001, 3650),
    "start_timeout_s": (0.1, 7 * 86400),
}

StrategyClasses = Literal["installed", "any"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """A coordinator's configuration, every value in range; sizes in bytes, times as named.

    `host` and `port` are where it listens (port 0: any free one). `strategy_classes` says which
    classes a submission's `_target_` may name.
    """

    home: Path
    name: str
    host: str
    port: int
    runs_at_once: int
    queue: int
    max_model_bytes: int
    max_rounds: int
    max_sites: int
    certificate_days: float
    strategy_classes: StrategyClasses
    start_timeout_s: float


def load_coordinator_config(home: Path, overrides: Sequence[str]) -> CoordinatorConfig:
    """Return the configuration of the coordinator at `home`; overrides are key=value.

    Raises:
        UsageError: no coordinator.yaml, or one that is no YAML; an unknown key, a missing or wrong
            value. Names the file or the override, and the key.
    """
    return coordinator_config(_merge(home / COORDINATOR_FILE, overrides), home.absolute())


def coordinator_config(values: Mapping[str, Any], home: Path) -> CoordinatorConfig:
    """Check the plain values of a coordinator.yaml and return them as one value.

    Raises:
        UsageError: a value out of range (names its key).
    """
    for key, (least, most) in _BOUNDS.items():
        if not (math.isfinite(values[key]) and least <= values[key] <= most):
            raise ValueRangeError(key, values[key], f"a number from {least:g} to {most:.15g}")
    try:
        Peer(role=Role.COORDINATOR, name=values["name"])
    except FedfactoryError as error:
        raise ValueRangeError("name", values["name"], error.public_message) from error
    classes = values["strategy_classes"]
    if classes not in ("installed", "any"):
        raise ValueRangeError("strategy_classes", classes, "installed, or any")
    host, port = _address(values["listen"])
    rest = {key: value for key, value in values.items() if key != "listen"}
    return CoordinatorConfig(home=home, host=host, port=port, **rest)


def _merge(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from fedfactory.coordinator.coordinator_schema import CoordinatorSchema

    defaults = (files("fedfactory.conf") / COORDINATOR_FILE).read_text(encoding="utf-8")
    config = OmegaConf.merge(OmegaConf.structured(CoordinatorSchema), OmegaConf.create(defaults))
    try:
        own = OmegaConf.create(_read(path) or "{}")
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise UsageError(f"{path}: line {line} is no YAML: {error.problem}") from error
    if not OmegaConf.is_dict(own):
        raise UsageError(f"{path}: expected keys and values, as in queue: 10")
    for where, later in ((str(path), own), *((f"'{word}'", _override(word)) for word in overrides)):
        try:
            config = OmegaConf.merge(config, later)
            OmegaConf.resolve(config)
        except OmegaConfBaseException as error:
            raise _diagnosis(where, later, error) from error
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UsageError(f"{path}: {', '.join(missing)}: no value and no default")
    values: Any = OmegaConf.to_container(config)
    return dict(values)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UsageError(
            f"{path} cannot be read ({reason}): `fedfactory consortium init` makes a"
            " coordinator's home"
        ) from error


def _override(word: str) -> Any:
    import yaml
    from omegaconf import OmegaConf

    key, equals, _ = word.partition("=")
    if not equals or not key:
        raise UsageError(f"'{word}': expected key=value, as in runs_at_once=2")
    try:
        return OmegaConf.from_dotlist([word])
    except yaml.YAMLError as error:
        raise UsageError(f"'{word}': the value is no YAML; quote special characters") from error


def _diagnosis(where: str, later: Any, error: Exception) -> UsageError:
    """Say in our words what OmegaConf found in the file or override `where`."""
    from fedfactory.coordinator.coordinator_schema import CoordinatorSchema

    known = {field.name: _FORMS[str(field.type)] for field in fields(CoordinatorSchema)}
    for key in (str(key) for key in later):
        if key not in known:
            return UnknownNameError(f"key in {where}:", key, known)
    found = str(getattr(error, "full_key", None) or "").partition(".")[0].partition("[")[0]
    return UsageError(f"{where}: {found}: expected {known.get(found, 'another value')}")


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) <= MAX_PORT):
        raise ValueRangeError("listen", listen, "host:port, as in 0.0.0.0:9443")
    return host, int(port)
