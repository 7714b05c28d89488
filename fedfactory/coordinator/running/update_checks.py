"""What a reply says, held against its order and plan: which numbers a site may state. Pure.

A site chooses its noise, within the signed epsilon, and its public size; both enter the bound of
its update's norm. So they must agree with each other and with what was signed, and are bounded.
"""

from __future__ import annotations

from fedfactory.contracts.orders import Order
from fedfactory.contracts.plans import RunTerms
from fedfactory.contracts.privacy import MAX_NOISE, MAX_PUBLIC_SIZE
from fedfactory.contracts.update_norms import Base, norm_bound
from fedfactory.contracts.updates import Update
from fedfactory.privacy.sampling import noising, sampling


def false_number(order: Order, update: Update, declared: int | None) -> str | None:
    """Return which of the reply's numbers cannot be true and what was expected; None if all can.

    `declared` is the most examples that the run's plan declares for the site (None: nothing).
    """
    most = declared
    if order.privacy is not None:
        most = min(MAX_PUBLIC_SIZE, MAX_PUBLIC_SIZE if declared is None else declared)
    if most is not None and (update.examples or 0) > most:
        whose = "the type allows" if declared is None else "the plan declares for the site"
        return f"Update.examples: {update.examples}, above {most}, which {whose}"
    if (update.privacy is None) != (order.privacy is None):
        return "Update.privacy: expected exactly with differential privacy"
    if order.training is None or order.privacy is None:
        return None
    return _false_spending(order, update)


def _false_spending(order: Order, update: Update) -> str | None:
    assert order.training is not None
    assert order.privacy is not None
    assert update.privacy is not None
    if not update.examples:
        return "Update.examples: expected the site's public size"
    spent, planned = update.privacy, order.privacy.noise_multiplier
    once = sampling(order.training, update.examples)
    if spent.sample_rate != once.sample_rate:
        return f"Update.privacy.sample_rate: expected {once.sample_rate!r} of its public size"
    if spent.steps != once.steps:
        return f"Update.privacy.steps: expected {once.steps} of its public size"
    if spent.noise_multiplier > MAX_NOISE:
        return f"Update.privacy.noise_multiplier: expected at most {MAX_NOISE:g}"
    if planned is not None and spent.noise_multiplier != planned:
        return f"Update.privacy.noise_multiplier: expected the plan's {planned!r}"
    return None


def bound_of(terms: RunTerms, order: Order, base: Base, update: Update) -> float:
    """Return the bound of an update's norm; its numbers have passed `false_number`."""
    assert order.training is not None
    found = None
    if update.privacy is not None:
        assert update.examples is not None
        found = noising(order.training, update.examples, update.privacy.noise_multiplier)
    return norm_bound(terms, order.training, base, found)
