"""The agent's accountant: Google's dp-accounting, without torch. Imported at the first charge."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from typing import Any, Final

from fedfactory.privacy.accounting import LEAST_NOISE, Cost, Rdp

# Small orders decide for little noise, large ones for much. Whole ones are cheap; the fractional
# ones, dear, are as few as keep epsilon within 3 % of a grid three times as fine. A filter needs
# fixed orders: changing them changes what every ledger has spent.
ORDERS: Final = (
    *(1 + x / 10 for x in range(1, 30, 2)),
    *(4 + x / 2 for x in range(10)),
    *range(9, 65),
    *(72, 80, 96, 112, 128, 160, 192, 256, 384, 512),
)


class RdpAccounting:
    """Renyi accounting of Poisson-sampled Gaussian steps (Mironov, Talwar, Zhang 2019).

    Neighbours differ by one unit replaced by null. Epsilon is the conversion of Canonne, Kamath,
    Steinke 2020, least over the orders. Vectors are looked up with `recall` and kept with `keep`.
    """

    def __init__(
        self, recall: Callable[[Cost], Rdp | None], keep: Callable[[Cost, Rdp], None]
    ) -> None:
        self._recall = recall
        self._keep = keep
        self._known: dict[Cost, Rdp] = {}

    @cached_property
    def name(self) -> str:
        """See Accountant."""
        return f"RDP (dp-accounting {version('dp-accounting')})"

    @cached_property
    def _library(self) -> Any:
        import absl.logging
        import dp_accounting
        import dp_accounting.rdp

        # It warns of each order whose series does not converge; such an order is left out (inf).
        absl.logging.set_verbosity("error")
        return dp_accounting

    def rdp(self, cost: Cost) -> Rdp:
        """See Accountant. Computed once per distinct cost: 30 to 100 ms."""
        if cost not in self._known:
            vector = self._recall(cost)
            if vector is None:
                vector = self.measure(cost)
                self._keep(cost, vector)
            self._known[cost] = vector
        return self._known[cost]

    def measure(self, cost: Cost) -> Rdp:
        """Compute the divergence of one step at ORDERS.

        An order at which it cannot be computed costs without bound; so does noise below
        LEAST_NOISE, where the series overflow to values that would read as no cost at all.
        """
        if not cost.noise_multiplier >= LEAST_NOISE:
            return (math.inf,) * len(ORDERS)
        library = self._library
        accountant = library.rdp.RdpAccountant(
            orders=ORDERS,
            neighboring_relation=library.NeighboringRelation.REPLACE_SPECIAL,
        )
        gaussian = library.GaussianDpEvent(cost.noise_multiplier)
        accountant.compose(library.PoissonSampledDpEvent(cost.sample_rate, gaussian))
        return tuple(
            math.inf if math.isnan(value) else max(0.0, float(value)) for value in accountant.rdp
        )

    def epsilon(self, rdp: Rdp, delta: float) -> float:
        """See Accountant."""
        from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

        return float(compute_epsilon(ORDERS, rdp, delta)[0])
