"""How updates become a model: one paper, one file, one line in the table."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from fedfactory.contracts.errors import FedfactoryError, UnknownNameError, UsageError
from fedfactory.contracts.plugins import PluginTable
from fedfactory.contracts.strategy import StreamingStrategy

STRATEGIES: Final = PluginTable(
    kind="strategy",
    group="fedfactory.strategies",
    own={
        "fedavg": "strategies.fedavg:FedAvg",
        "fedbuff": "strategies.fedbuff:FedBuff",
        "fedprox": "strategies.fedprox:FedProx",
    },
)
_NEEDED: Final = ("train_parameters", "weight", "apply")


def make_strategy(name: str, options: Mapping[str, Any]) -> StreamingStrategy:
    """Return the strategy of that name with its fields set from `options`.

    Raises:
        UnknownNameError: no such strategy, or an option that it does not take.
        ValueRangeError: an option out of range.
        UsageError: an option is missing, or the plug-in is no streaming strategy.
    """
    cls = STRATEGIES.load(name)
    if missing := [method for method in _NEEDED if not callable(getattr(cls, method, None))]:
        raise UsageError(
            f"strategy '{name}' is no streaming strategy: it lacks {missing[0]}(); a strategy of"
            " Flower's kind is named by strategy=custom strategy._target_=module.Class"
        )
    fields = inspect.signature(cls).parameters
    for key in options:
        if key not in fields:
            raise UnknownNameError("option", f"strategy.{key}", (f"strategy.{f}" for f in fields))
    for key, field in fields.items():
        if key not in options and field.default is inspect.Parameter.empty:
            raise UsageError(f"strategy '{name}' needs a value for strategy.{key}")
    try:
        strategy: StreamingStrategy = cls(**options)
    except FedfactoryError:
        raise
    except Exception as error:
        raise UsageError(
            f"strategy '{name}' does not take {dict(options)}: {type(error).__name__}: {error}"
        ) from error
    return strategy
