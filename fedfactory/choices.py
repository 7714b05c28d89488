"""The groups of conf/ and the names in each: YAML files, and plug-ins of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

OPEN_STRATEGY: Final = "custom"


@cache
def groups(root: str) -> Mapping[str, str]:
    """Return the groups that conf/<root>.yaml chooses from, each with its default choice."""
    text = (files("fedfactory.conf") / f"{root}.yaml").read_text(encoding="utf-8")
    defaults = yaml.safe_load(text)["defaults"]
    return {k: v for entry in defaults if isinstance(entry, dict) for k, v in entry.items()}


def choices(group: str) -> list[str]:
    """Return the names there are in a group, sorted."""
    return sorted({*_yaml_names(group), *plugin_choices(group)})


def plugin_choices(group: str) -> list[str]:
    """Return the names that have no YAML here: tasks and strategies of other packages."""
    if group == "task":
        from fedfactory.tasks.table import TASKS as TABLE
    elif group == "strategy":
        from strategies import STRATEGIES as TABLE
    else:
        return []
    return sorted(set(TABLE.names()) - set(_yaml_names(group)))


def is_open(group: str, choice: str) -> bool:
    """Whether a choice takes keys of its own: those of a class that conf/ does not know."""
    return (group, choice) == ("strategy", OPEN_STRATEGY) or choice in plugin_choices(group)


def values_of(group: str, choice: str) -> Mapping[str, Any]:
    """Return the YAML of a choice as written, without its defaults list."""
    text = (files("fedfactory.conf") / group / f"{choice}.yaml").read_text(encoding="utf-8")
    return {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}


@cache
def _yaml_names(group: str) -> tuple[str, ...]:
    found = (entry.name for entry in (files("fedfactory.conf") / group).iterdir())
    return tuple(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))
