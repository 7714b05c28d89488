"""What to say of lineages whose updates left without differential privacy: no bound holds there."""

from __future__ import annotations

from datetime import UTC, datetime

from fedfactory.contracts.privacy import no_bound
from fedfactory.privacy.budget import Budget


def unbounded(budget: Budget) -> dict[str, str]:
    """Return what to say of each lineage that has no bound, by name."""
    return {
        name: no_bound(found.updates, day_of(found.last_at))
        for name, found in sorted(budget.unprotected.items())
    }


def day_of(at: float) -> str:
    """Return the day (YYYY-MM-DD, UTC) of a moment in Unix seconds."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()
