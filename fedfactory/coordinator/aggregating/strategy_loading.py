"""From a strategy's name to what the runner drives: ours stream, Flower's are adapted."""

from __future__ import annotations

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.plans import CUSTOM_STRATEGY, RunTerms
from fedfactory.contracts.strategy import StaleStrategy
from fedfactory.coordinator.aggregating.aggregation import Aggregation, StreamingAggregation
from fedfactory.coordinator.run_settings import RunSettings


def load_aggregation(settings: RunSettings) -> Aggregation:
    """Return the aggregation of a run.

    Raises:
        UsageError: what `check_strategy` raises.
    """
    plan = settings.plan
    return _make(plan.terms, seed=plan.seed, any_class=settings.any_strategy_class)


def check_strategy(terms: RunTerms, *, any_class: bool) -> None:
    """Check what an operator asks for, by making it once: the strategy, its options, its mode.

    No strategy may set a larger lr or momentum than `terms.training` has. `any_class` lets
    `_target_` name any importable class; else only what is installed here for it
    (flower_loading.load_flower_strategy).

    Raises:
        UsageError: an unknown strategy, options it does not take, another `_target_`, a strategy
            that cannot run in the run's mode, with its sites, or be saved.
    """
    _make(terms, seed=0, any_class=any_class)


def _make(terms: RunTerms, *, seed: int, any_class: bool) -> Aggregation:
    asynchronous = terms.mode == "async"
    if terms.strategy == CUSTOM_STRATEGY:
        if asynchronous:
            raise UsageError(_sync_only("custom (a Flower strategy)"))
        from fedfactory.coordinator.aggregating.flower_loading import load_flower_strategy
        from fedfactory.coordinator.aggregating.flower_strategy import FlowerAggregation

        return FlowerAggregation(
            load_flower_strategy(terms.strategy_options, any_class=any_class),
            training=terms.training,
            sites=terms.sites,
            seed=seed,
        )
    from strategies import make_strategy

    strategy = make_strategy(terms.strategy, terms.strategy_options)
    if asynchronous and not isinstance(strategy, StaleStrategy):
        raise UsageError(_sync_only(terms.strategy))
    return StreamingAggregation(strategy, training=terms.training)


def _sync_only(strategy: str) -> str:
    return (
        f"rounds.mode=async: strategy={strategy} does not say how an update enters that started"
        " from an older model (it has no stale_weight); use strategy=fedbuff, or rounds.mode=sync"
    )
