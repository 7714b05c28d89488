"""A run's configuration from a command's words: Hydra's overrides, and what help shows of them.

Nothing here imports torch or Flower; a wrong word is answered before either is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

ROOT: Final = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """conf/run.yaml with its overrides: as plain values, and as YAML."""

    values: Mapping[str, Any]
    text: str


def compose_run(overrides: Sequence[str]) -> Composed:
    """Return a run's configuration, names and types checked.

    Raises:
        UsageError: an unknown group, name or key, or a value of the wrong type.
    """
    from omegaconf import OmegaConf

    from fedfactory.hydra_config import compose_config, plain
    from fedfactory.run_schema import CHOICE_SCHEMAS, RunSchema

    composed = compose_config(ROOT, overrides, RunSchema, CHOICE_SCHEMAS, _tables())
    return Composed(values=plain(composed), text=OmegaConf.to_yaml(composed))


def of_sites(composed: Composed, sites: Sequence[str]) -> str:
    """Return the YAML of a run of these sites, without what only a run on one machine has."""
    from omegaconf import OmegaConf

    local_only = ("partition", "executor", "baselines")
    values = {key: value for key, value in composed.values.items() if key not in local_only}
    return OmegaConf.to_yaml(OmegaConf.create({**values, "federation": {"sites": list(sites)}}))


def choices_help() -> list[str]:
    """Return what help shows of groups, sites, keys and their defaults."""
    from site_agents.catalogue import site_names

    run_yaml = (files("fedfactory.conf") / f"{ROOT}.yaml").read_text(encoding="utf-8")
    _, _, defaults = run_yaml.partition("_self_\n")
    return [
        "choices (* default), with keys of their own:",
        *_choice_lines(),
        "",
        f"sites of the catalogue: {', '.join(site_names())}",
        "",
        "keys and their defaults:",
        *(f"  {line}".rstrip() for line in defaults.strip().splitlines()),
    ]


def override_words(prefix: str, **_: object) -> list[str]:
    """Return the overrides that begin so, for the shell's Tab."""
    from fedfactory.choices import choices, groups, root_keys, values_of

    words = [f"{group}={name}" for group in groups(ROOT) for name in choices(group)]
    words += [f"{key}=" for key in root_keys(ROOT)]
    group = prefix.split(".", maxsplit=1)[0]
    if "." in prefix and group in groups(ROOT):
        keys = {key for choice in choices(group) for key in values_of(group, choice)}
        words += [f"{group}.{key}=" for key in keys]
    return [word for word in words if word.startswith(prefix)]


def _tables() -> dict[str, list[str]]:
    """Return the names that a group's table knows, plug-ins of installed packages among them."""
    from fedfactory.tasks.table import TASKS
    from strategies import STRATEGIES

    return {"task": TASKS.names(), "strategy": STRATEGIES.names()}


def _choice_lines() -> list[str]:
    from fedfactory.choices import choices, groups, values_of

    lines = []
    for group, default in groups(ROOT).items():
        for choice in sorted({*choices(group), *_tables().get(group, ())}):
            keys = values_of(group, choice) if choice in choices(group) else {"...": "its own keys"}
            own = "  ".join(
                f"{group}.{key}={_shown(value)}"
                for key, value in keys.items()
                if value != choice  # `name: digits` in digits.yaml is no key to set
            )
            star = "*" if choice == default else " "
            lines.append(f"  {star} {f'{group}={choice}':<23} {own}".rstrip())
    return lines


def _shown(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    if value is None:
        return "null"
    return "(mandatory)" if value == "???" else str(value)
