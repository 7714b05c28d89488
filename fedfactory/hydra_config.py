"""Composes configuration with Hydra and turns its many errors into one line that says what is known.

Hydra's compose API, not `hydra.main`: it leaves no folders, sets up no logging and lets us render the
errors. Importing and composing take about 0.3 s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from fedfactory.contracts.errors import UnknownNameError, UsageError, ValueRangeError

GROUPS: Final = ("task", "strategy", "federation", "partition", "privacy", "executor")


def choices(group: str) -> list[str]:
    """Return the names of a configuration group."""
    found = (files("fedfactory.conf") / group).iterdir()
    return sorted(e.name.removesuffix(".yaml") for e in found if e.name.endswith(".yaml"))


def compose_config(root: str, overrides: Sequence[str], schema: type) -> DictConfig:
    """Return the configuration `root` with overrides applied, checked against `schema`.

    Raises:
        UsageError: an unknown group, name or key, or a value of the wrong type: one line each.
    """
    for override in overrides:
        _check_form(override)
    ConfigStore.instance().store(name=f"{root}_schema", node=schema)
    try:
        with initialize_config_module("fedfactory.conf", version_base="1.3"):
            return compose(root, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise _one_line(error, overrides) from error


def _check_form(override: str) -> None:
    if "=" not in override:
        raise UsageError(f"'{override}': expected key=value, as in rounds=5")
    key, _, value = override.partition("=")
    if key in GROUPS and value not in choices(key):
        raise UnknownNameError(key, value, choices(key))


def _one_line(error: Exception, overrides: Sequence[str]) -> UsageError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigAttributeError | ConfigKeyError):
            return _unknown_key(cause)
        if isinstance(cause, OmegaConfBaseException) and not isinstance(
            cause, UnsupportedInterpolationType
        ):
            key = str(getattr(cause, "full_key", "") or "?")
            value = next((o.partition("=")[2] for o in overrides if o.startswith(f"{key}=")), "?")
            return ValueRangeError(key, value, _expected(str(cause)))
        cause = cause.__cause__
    if isinstance(error, MissingConfigException | ConfigCompositionException | HydraException):
        first = str(error).strip().splitlines()[0]
        return UsageError(re.sub(r"\s+", " ", first).rstrip("."))
    return UsageError(str(error).splitlines()[0])


def _unknown_key(error: Any) -> UsageError:
    parent = getattr(error, "parent_node", None)
    key = str(getattr(error, "key", "?"))
    known = [str(k) for k in parent if k != "hydra"] if isinstance(parent, DictConfig) else []
    prefix = str(getattr(error, "full_key", key)).rpartition(".")[0]
    return UnknownNameError(f"key in '{prefix}':" if prefix else "key", key, known)


def _expected(text: str) -> str:
    for word, kind in {
        "Integer": "a whole number",
        "Float": "a number",
        "Boolean": "true or false",
        "Mandatory": "a value",
    }.items():
        if word in text:
            return kind
    return text.splitlines()[0]


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values.

    Raises:
        UsageError: a mandatory value is missing; names its key.
    """
    if missing := OmegaConf.missing_keys(config):
        raise ValueRangeError(sorted(missing)[0], "", "a value; it is mandatory")
    values: Any = OmegaConf.to_container(config, resolve=True)
    return dict(values)
