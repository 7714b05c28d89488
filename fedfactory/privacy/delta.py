"""Whether a delta says anything of one unit among many. Pure; every check of a delta asks this."""

from __future__ import annotations


def delta_fault(delta: float, units: int, *, size: str) -> str | None:
    """Return why `delta` is too large for a population of `units`; None if it is small enough.

    A mechanism that publishes one unit at random, whole, is (0, 1/units)-differentially private:
    from there on a guarantee says nothing of a single unit (Dwork and Roth 2014, section 2.3). The
    population counts whole: train and test are parts of it. `size` is how the text calls `units`.

    >>> delta_fault(1e-5, 1000, size="1000 records") is None
    True
    >>> delta_fault(0.001, 1000, size="1000 records")
    '0.001 is not below 1 / 1000 records, and then says nothing of a single one'
    """
    if delta < 1 / units:
        return None
    return f"{delta:g} is not below 1 / {size}, and then says nothing of a single one"
