"""Which records a site trains on and which it tests on: fixed for a lineage, whatever is added.

A unit's side follows from the lineage and the unit's own name, a record's without units from the
lineage and its number in the source: no other record has a say. So a unit never sits on both sides,
stays on its side when data is appended, and one record more or less moves no other (the
sensitivity of what is released stays one unit's).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.privacy.sampling import EVALUATION_SHARE
from fedfactory.tasks.seeds import derive_seed

# Of derive_seed's 63 bits, and of Philox's 64.
_UNIT_BOUND: Final = int(EVALUATION_SHARE * (1 << 63))
_RECORD_BOUND: Final = np.uint64(EVALUATION_SHARE * (1 << 64))


class Split:
    """The split of one lineage: each unit is for testing with probability EVALUATION_SHARE.

    Records without units are asked for once each, in the source's order.
    """

    def __init__(self, lineage: str) -> None:
        self._lineage = lineage
        self._units: dict[str, bool] = {}
        # Raw words of a counter-based generator (Salmon et al. 2011), which NumPy keeps stable.
        self._words = np.random.Philox(key=derive_seed(lineage, "split", "records"))

    def tests_of_records(self, count: int) -> NDArray[np.bool_]:
        """Return for each of the next `count` records whether it is for testing."""
        words: NDArray[np.uint64] = np.asarray(self._words.random_raw(count), np.uint64)
        return words < _RECORD_BOUND

    def tests_of_units(self, units: Sequence[str]) -> NDArray[np.bool_]:
        """Return for each record, by its unit's name, whether it is for testing."""
        for unit in set(units).difference(self._units):
            drawn = derive_seed(self._lineage, "split", "unit", unit)
            self._units[unit] = drawn < _UNIT_BOUND
        return np.fromiter((self._units[unit] for unit in units), np.bool_, len(units))
