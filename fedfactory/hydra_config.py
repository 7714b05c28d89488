"""Composes configuration with Hydra, and says in one line what is wrong with an override.

Hydra's compose API, not `hydra.main`: `hydra.main` parses sys.argv with options of its own, sets up
logging and a run folder, prints its own errors and exits 1. Measured here: importing Hydra 0.11 s,
composing 0.10 s; a wrong override costs a second composition, to find out what is known.

Keys that no schema knows are errors, also with Hydra's `+` and `++`; only open choices (a strategy
by `_target_`, a plug-in) take keys of their own, with or without the sign.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    ValidationError,
)

from fedfactory.choices import OPEN_STRATEGY, choices, groups, values_of
from fedfactory.contracts.errors import UnknownNameError, UsageError, ValueRangeError

CONFIG_MODULE: Final = "fedfactory.conf"
HYDRA_VERSION_BASE: Final = "1.3"
# A plain value for a mapping is short for its most wanted key: rounds=10.
SHORT_FORMS: Final[Mapping[str, str]] = {"rounds": "rounds.number"}
_EXPECTED: Final = {
    "IntegerNode": "a whole number",
    "FloatNode": "a number",
    "BooleanNode": "true or false",
    "StringNode": "a text",
    "ListConfig": "a list, as in [a,b]",
    "DictConfig": "its keys one by one, as in key.name=value",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Override:
    """One `key=value`, as typed and as parsed; `choice` is set when the key is a group."""

    key: str
    text: str
    choice: str | None
    adds: bool

    @property
    def hydra(self) -> str:
        return f"{'++' if self.adds else ''}{self.key}={self.text}"


def compose_config(
    root: str,
    overrides: Sequence[str],
    schema: type,
    choice_schemas: Mapping[str, type] | None = None,
    plugins: Mapping[str, Sequence[str]] | None = None,
) -> DictConfig:
    """Return conf/<root>.yaml with overrides applied, references resolved, checked against schemas.

    `choice_schemas` maps 'group/name' to the schema that a choice's YAML asks for. `plugins` gives
    for a group every name that its table knows; those without a YAML take keys of their own.

    Raises:
        UsageError: an unknown group, name or key, or a value of the wrong type: one line each.
    """
    known = {g: {*choices(g), *(plugins or {}).get(g, ())} for g in groups(root)}
    opened = {(g, name) for g, names in known.items() for name in names - {*choices(g)}}
    _register(root, schema, choice_schemas or {}, opened)
    with initialize_config_module(CONFIG_MODULE, version_base=HYDRA_VERSION_BASE):
        parsed = _parse(root, overrides, known, {*opened, ("strategy", OPEN_STRATEGY)})
        try:
            config = compose(root, overrides=[override.hydra for override in parsed])
            OmegaConf.resolve(config)
        except (HydraException, OmegaConfBaseException) as error:
            chosen = [override.hydra for override in parsed if override.choice]
            raise _diagnosis(error, parsed, compose(root, overrides=chosen)) from error
        for override in parsed:
            if override.key.partition(".")[0] == "hydra":  # Hydra's own settings stay as they are
                raise UnknownNameError("key", override.key, map(str, config))
    return config


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values.

    Raises:
        UsageError: a mandatory value is missing; names its key.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UsageError(f"{', '.join(missing)}: no value and no default; add {missing[0]}=...")
    values: Any = OmegaConf.to_container(config)
    return dict(values)


def _register(
    root: str, schema: type, choice_schemas: Mapping[str, type], opened: Iterable[tuple[str, str]]
) -> None:
    store = ConfigStore.instance()
    store.store(name=f"{root}_schema", node=schema)
    for path, node in choice_schemas.items():
        group, _, name = path.rpartition("/")
        store.store(group=f"schema/{group}", name=name, node=node)
    for group, name in opened:
        store.store(group=group, name=name, node={"name": name})


def _parse(
    root: str,
    overrides: Sequence[str],
    known: Mapping[str, Collection[str]],
    opened: Collection[tuple[str, str]],
) -> list[_Override]:
    parsed = [_parse_one(text, known) for text in overrides]
    chosen = {**groups(root), **{o.key: o.choice for o in parsed if o.choice is not None}}
    open_groups = {group for group, choice in chosen.items() if (group, choice) in opened}
    return [
        replace(override, adds=True)
        if override.key.partition(".")[0] in open_groups and override.choice is None
        else override
        for override in parsed
    ]


def _parse_one(text: str, known: Mapping[str, Collection[str]]) -> _Override:
    try:
        found = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise _malformed(text) from error
    key = found.key_or_group + (f"@{found.package}" if found.package else "")
    if found.is_delete():
        raise UsageError(f"'{text}': a key cannot be removed, only set")
    if not key:
        raise _malformed(text)
    if found.is_sweep_override():
        raise UsageError(
            f"'{text}': one run takes one value; [a,b] is a list, and text with a comma is quoted"
        )
    value = text.partition("=")[2].strip()
    if key in known and value not in known[key]:
        raise UnknownNameError(key, value, known[key])
    if key in SHORT_FORMS and not isinstance(found.value(), dict):
        key = SHORT_FORMS[key]
    return _Override(key=key, text=value, choice=value if key in known else None, adds=False)


def _malformed(text: str) -> UsageError:
    return UsageError(
        f"'{text}': expected key=value, as in rounds=5; quote a value with special characters:"
        " \"key='a (b)'\""
    )


def _diagnosis(error: Exception, overrides: Sequence[_Override], base: DictConfig) -> UsageError:
    """Say what is wrong; `base` is the configuration with the chosen groups and nothing else."""
    for override in overrides:
        if override.choice is None and not override.adds and (bad := _unknown(base, override.key)):
            return bad
    cause: BaseException | None = error
    while cause is not None:
        key = str(getattr(cause, "full_key", None) or "")
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and (
            bad := _unknown(base, key)
        ):
            return bad
        if isinstance(cause, ValidationError) and key:
            return ValueRangeError(key, _typed(overrides, key), _expected(base, key))
        if isinstance(cause, InterpolationResolutionError):
            typed = next((o for o in overrides if "${" in o.text), None)
            return ValueRangeError(
                typed.key if typed else key,
                typed.text if typed else "",
                f"a value or a reference that resolves ({str(cause).splitlines()[0]})",
            )
        cause = cause.__cause__
    return UsageError(" ".join(str(error).split()))


def _unknown(base: DictConfig, key: str) -> UsageError | None:
    """Return the error for the first part of `key` that `base` does not have."""
    node: Any = base
    parts = key.split(".")
    for depth, part in enumerate(parts):
        prefix = ".".join(parts[:depth])
        if isinstance(node, ListConfig):
            return None
        if not isinstance(node, DictConfig):
            return UnknownNameError("key", key, [prefix])
        if part not in node and not OmegaConf.is_missing(node, part):
            known = (f"{prefix}.{name!s}" if prefix else str(name) for name in node)
            owners = _choices_with(prefix, part) if depth == 1 else []
            hint = f"it is a key of {' and '.join(owners)}" if owners else None
            return UnknownNameError("key", key, known, hint=hint)
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return None


def _choices_with(group: str, key: str) -> list[str]:
    """Return the choices of a group, as typed, that have a key."""
    try:
        return [f"{group}={name}" for name in choices(group) if key in values_of(group, name)]
    except FileNotFoundError:  # no group, but a part of the root
        return []


def _typed(overrides: Sequence[_Override], key: str) -> str:
    """Return what was typed for `key`, or for the mapping that holds it."""
    texts = [o.text for o in overrides if key == o.key or key.startswith(f"{o.key}.")]
    return texts[-1] if texts else ""


def _expected(base: DictConfig, key: str) -> str:
    parent, _, name = key.rpartition(".")
    holder: Any = OmegaConf.select(base, parent) if parent else base
    node = holder._get_node(name)  # noqa: SLF001  # OmegaConf has no public way to a node's type
    kind = _EXPECTED.get(type(node).__name__, "a value of another type")
    return f"{kind}, or null" if node is not None and node._is_optional() else kind  # noqa: SLF001
