"""How much a site's update counts in the mean: by its examples, or the same for all."""

from __future__ import annotations

from typing import Final, Literal, get_args

from fedfactory.contracts.errors import UsageError, ValueRangeError
from fedfactory.contracts.updates import Update

Weighting = Literal["examples", "uniform"]
WEIGHTINGS: Final[tuple[str, ...]] = get_args(Weighting)


def check_weighting(weighting: str) -> None:
    """Refuse a weighting that there is not.

    Raises:
        ValueRangeError: not one of WEIGHTINGS.
    """
    if weighting not in WEIGHTINGS:
        raise ValueRangeError("strategy.weighting", weighting, f"one of {', '.join(WEIGHTINGS)}")


def weight_of(update: Update, weighting: Weighting) -> float:
    """Return the update's weight: n_k (McMahan et al. 2017, Algorithm 1), or 1 for every site.

    Raises:
        UsageError: weighted by examples, but the site withholds its count.
    """
    if weighting == "uniform":
        return 1.0
    if update.examples is None:
        raise UsageError(
            f"site '{update.work.site}' withholds its number of examples (its privacy mode asks"
            " for it), so updates cannot be weighted by it; set strategy.weighting=uniform"
        )
    return float(update.examples)
