"""From a strategy's name to what the runner drives: ours stream, Flower's are adapted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedfactory.coordinator.aggregation import Aggregation, StreamingAggregation
from fedfactory.coordinator.settings import RunSettings

CUSTOM: Final = "custom"


def load_aggregation(settings: RunSettings, roster: Mapping[str, int]) -> Aggregation:
    """Return the aggregation of a run; `roster` maps site to Flower node id.

    Raises:
        UsageError: an unknown strategy, or options it does not take.
    """
    options = dict(settings.strategy_options)
    if settings.plan.strategy == CUSTOM:
        from fedfactory.coordinator.flower_loading import load_flower_strategy
        from fedfactory.coordinator.flower_strategy import FlowerAggregation

        return FlowerAggregation(
            load_flower_strategy(options),
            training=settings.signed.terms.training,
            roster=roster,
            seed=settings.plan.seed,
        )
    from strategies import make_strategy

    return StreamingAggregation(
        make_strategy(settings.plan.strategy, options), training=settings.signed.terms.training
    )
