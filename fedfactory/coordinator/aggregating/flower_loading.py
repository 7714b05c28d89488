"""From `_target_` to a Flower strategy: Flower's own or a user's class, made and judged fit."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from flwr.serverapp import strategy as published
from flwr.serverapp.strategy import Strategy

from fedfactory.contracts.errors import UnknownNameError, UsageError
from strategies import STRATEGIES

# Families of Flower's that cannot keep their promise here, by the start of the class name.
REFUSED: Final[Mapping[str, str]] = {
    "DifferentialPrivacy": (
        "Flower's privacy wrappers noise unclipped updates and account for nothing;"
        " privacy is the sites' and the round's: see privacy="
    ),
    "FedXgb": "it aggregates trees as bytes, and updates here are deltas of tensors",
}


def load_flower_strategy(options: Mapping[str, Any], *, any_class: bool) -> Strategy:
    """Return the strategy that `_target_` ('module.Class') names, made with the other options.

    `any_class` takes any class that can be imported; else it is one that Flower publishes in
    flwr.serverapp.strategy, or one installed as an entry point of STRATEGIES' group, and nothing
    else is even looked up.

    Raises:
        UsageError: it may not be named here, cannot be imported, is no usable Flower strategy, or
            refuses the options.
        UnknownNameError: an option that it does not take.
    """
    keywords = dict(options)
    target = keywords.pop("_target_", None)
    if not isinstance(target, str) or "." not in target:
        found = "is not given" if target is None else f"is {target!r}"
        raise UsageError(
            f"strategy._target_ {found}: expected module.Class,"
            " for example flwr.serverapp.strategy.FedMedian"
        )
    _check_values(keywords)
    cls = _resolve(target, any_class=any_class)
    _check_class(target, cls)
    _check_keywords(target, cls, keywords)
    try:
        strategy: Strategy = cls(**keywords)
    except Exception as error:
        raise UsageError(
            f"strategy._target_={target} does not take {keywords}: {type(error).__name__}: {error}"
        ) from error
    return strategy


def _check_values(keywords: Mapping[str, Any]) -> None:
    for key, value in keywords.items():
        if not isinstance(key, str) or key.startswith("_"):
            raise UsageError(
                f"strategy.{key} is refused: a strategy takes _target_ and its own arguments,"
                " and no other key that begins with '_'"
            )
        items = value if isinstance(value, tuple | list) else (value,)
        if not all(isinstance(item, str | int | float | bool | None) for item in items):
            raise UsageError(
                f"strategy.{key} is a nested value: expected a number, text, true, false, null,"
                " or a list of them"
            )


def _resolve(target: str, *, any_class: bool) -> Any:
    module, _, name = target.rpartition(".")
    if module == published.__name__ and name in published.__all__:
        return getattr(published, name)
    installed = {f"{entry.module}.{entry.attr}": entry for entry in _installed()}
    if not any_class and target not in installed:
        others = f"; installed here: {', '.join(sorted(installed))}" if installed else ""
        raise UsageError(
            f"strategy._target_={target} is refused: strategy_classes is `installed` here, so this"
            f" coordinator makes {published.__name__}.NAME ({', '.join(_published())}), and classes"
            f" that are installed{others}. To install yours, declare"
            f' `mine = "{module}:{name}"` under'
            f' [project.entry-points."{STRATEGIES.group}"] in its package\'s pyproject.toml, and'
            " pip install the package beside fedfactory here and at the coordinator; or ask its"
            " administrator for `strategy_classes: any` in coordinator.yaml"
        )
    try:
        return installed[target].load() if target in installed else _import(module, name)
    except Exception as error:
        raise UsageError(
            f"strategy._target_={target} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _published() -> list[str]:
    """Return the names of Flower's strategies that can be made here."""
    return [
        name
        for name in published.__all__
        if name != "Strategy"
        and issubclass(getattr(published, name), Strategy)
        and not name.startswith(tuple(REFUSED))
    ]


def _installed() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=STRATEGIES.group))


def _import(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _check_class(target: str, cls: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        raise UsageError(
            f"strategy._target_={target}: expected a subclass of flwr.serverapp.strategy.Strategy"
        )
    for base in cls.__mro__:
        for start, why in REFUSED.items():
            if base.__module__.startswith("flwr.") and base.__name__.startswith(start):
                raise UsageError(f"strategy._target_={target} is refused: {why}")
    if cls.start is not Strategy.start:
        raise UsageError(
            f"strategy._target_={target} is refused: it overrides start(), a round loop of its"
            " own; the rounds here are fedfactory's"
        )
    if missing := sorted(cls.__abstractmethods__):
        raise UsageError(f"strategy._target_={target}: it does not define {', '.join(missing)}")


def _check_keywords(target: str, cls: type[Strategy], keywords: Mapping[str, Any]) -> None:
    fields = inspect.signature(cls).parameters
    if not any(field.kind is inspect.Parameter.VAR_KEYWORD for field in fields.values()):
        for key in keywords:
            if key not in fields:
                known = (f"strategy.{name}" for name in fields)
                raise UnknownNameError("option", f"strategy.{key}", known)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    for key, field in fields.items():
        if (
            key not in keywords
            and field.default is inspect.Parameter.empty
            and field.kind not in variadic
        ):
            raise UsageError(f"{target} needs a value: add +strategy.{key}=...")
