"""What a mechanism costs, and which noise a plan needs. Pure: the accountant comes as an argument.

Costs are Renyi divergences (Mironov 2017) at fixed orders, one vector a noisy step; they add up
over steps, also when later parameters depend on earlier outputs, so a sum below the cap is a valid
privacy filter (Feldman and Zrnic 2021; Lecuyer 2021) at the lineage's fixed delta.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

Rdp = tuple[float, ...]

LEAST_NOISE: Final = 0.3  # with less there is no privacy to speak of, and its cost overflows
MOST_NOISE: Final = 256.0
NOISE_STEP: Final = 1.004  # noise is found up to this factor, from above


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One noisy step: noise over sensitivity, and the probability of each unit to be in it."""

    noise_multiplier: float
    sample_rate: float


Charges = Mapping[Cost, int]  # how many steps of each cost


class Accountant(Protocol):
    """Turns costs into Renyi divergences at its orders, and these into epsilon."""

    @property
    def name(self) -> str:
        """Which accountant this is, with its version."""

    def rdp(self, cost: Cost) -> Rdp:
        """Return the divergence of one step at each order."""

    def epsilon(self, rdp: Rdp, delta: float) -> float:
        """Return the epsilon of a total divergence at `delta`."""


def total(accountant: Accountant, charges: Charges) -> Rdp:
    """Return the divergence of all charges together; () for none.

    Sums are rounded once (math.fsum): neither the order of charges nor a charge more than before
    makes a total smaller.
    """
    parts = [
        [steps * value for value in accountant.rdp(cost)]
        for cost, steps in charges.items()
        if steps
    ]
    return tuple(math.fsum(values) for values in zip(*parts, strict=True))


def epsilon_of(accountant: Accountant, charges: Charges, delta: float) -> float:
    """Return the epsilon of all charges together; 0 for none."""
    rdp = total(accountant, charges)
    return accountant.epsilon(rdp, delta) if rdp else 0.0


def joined(*parts: Charges) -> dict[Cost, int]:
    """Return the sum of charges."""
    result: dict[Cost, int] = {}
    for part in parts:
        for cost, steps in part.items():
            result[cost] = result.get(cost, 0) + steps
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Caps on epsilon, at `delta`: of one run, and of a lineage's whole history.

    `run_delta` is set where the run's cap is to hold at another delta.
    """

    run: float
    lineage: float
    delta: float
    run_delta: float | None = None


def fits(accountant: Accountant, run: Charges, others: Charges, limits: Limits) -> bool:
    """Whether a run's whole charges keep both caps, with all `others` spent and held."""
    run_delta = limits.delta if limits.run_delta is None else limits.run_delta
    return (
        epsilon_of(accountant, run, run_delta) <= limits.run
        and epsilon_of(accountant, joined(run, others), limits.delta) <= limits.lineage
    )


def least_noise(
    accountant: Accountant,
    *,
    sample_rate: float,
    steps: int,
    beside: Charges,
    others: Charges,
    limits: Limits,
) -> float | None:
    """Return the least noise multiplier whose `steps` fit, from above up to NOISE_STEP.

    `beside` are the run's other charges (its evaluations), `others` the lineage's history. None:
    not even MOST_NOISE fits. More noise never costs more, so bisection finds it.
    """

    def fitting(noise: float) -> bool:
        cost = Cost(noise_multiplier=noise, sample_rate=sample_rate)
        return fits(accountant, joined(beside, {cost: steps}), others, limits)

    low, high = LEAST_NOISE, MOST_NOISE
    if not fitting(high):
        return None
    if fitting(low):
        return low
    while high > low * NOISE_STEP:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fitting(middle) else (middle, high)
    return high


def most_rounds(
    accountant: Accountant, per_round: Charges, others: Charges, limits: Limits, *, at_most: int
) -> int:
    """Return how many rounds of the same charges fit, up to `at_most`."""

    def fitting(rounds: int) -> bool:
        run = {cost: steps * rounds for cost, steps in per_round.items()}
        return fits(accountant, run, others, limits)

    low, high = 0, at_most + 1  # `low` rounds fit, `high` do not (or are not asked for)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fitting(middle) else (low, middle)
    return low
