"""The groups of conf/ and the names in each, read from the YAML files themselves."""

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
    defaults = _read(f"{root}.yaml")["defaults"]
    return {k: v for entry in defaults if isinstance(entry, dict) for k, v in entry.items()}


@cache
def choices(group: str) -> tuple[str, ...]:
    """Return the names that have a YAML in a group, sorted."""
    found = (entry.name for entry in (files("fedfactory.conf") / group).iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in found if n.endswith(".yaml")))


def root_keys(root: str) -> list[str]:
    """Return the keys of conf/<root>.yaml itself; those of a part as part.key."""
    found: list[str] = []
    for key, value in _read(f"{root}.yaml").items():
        if isinstance(value, dict):
            found += [f"{key}.{part}" for part in value]
        elif key != "defaults":
            found.append(key)
    return found


def values_of(group: str, choice: str) -> Mapping[str, Any]:
    """Return the YAML of a choice as written, without its defaults list."""
    read = _read(f"{group}/{choice}.yaml")
    return {key: value for key, value in read.items() if key != "defaults"}


def _read(path: str) -> dict[str, Any]:
    text = (files("fedfactory.conf") / path).read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))
