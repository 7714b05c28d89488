"""The L2 norm of a model or update over all its float tensors, the same to the bit on any machine.

A library's sum adds in an order that follows the processor's vector width. Here only elementwise
operations are used, which IEEE 754 fixes: element i of each tensor (flat, C order), squared as a
float64, is added to lane i mod LANES, tensor after tensor in canonical order (by name); then lane j
takes lane j + half, half = LANES / 2, LANES / 4, ..., 1, and the norm is the root of lane 0.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Lanes and one piece beside them stay in a core's second-level cache.
LANES: Final = 1 << 14


class NormL2:
    """Adds up one file's float tensors. Pieces of a tensor are added in order.

    Each piece but a tensor's last must hold a multiple of LANES elements.
    """

    def __init__(self) -> None:
        self._lanes = np.zeros(LANES)
        self._wide = np.empty(LANES)

    def add(self, piece: NDArray[Any]) -> None:
        """Add the squares of a flat piece of floats."""
        # What overflows or is not finite is found by `is_finite`: no warning is wanted.
        with np.errstate(all="ignore"):
            for start in range(0, piece.size, LANES):
                part = piece[start : start + LANES]
                wide, lanes = self._wide[: part.size], self._lanes[: part.size]
                wide[:] = part
                np.multiply(wide, wide, out=wide)
                np.add(lanes, wide, out=lanes)

    @property
    def is_finite(self) -> bool:
        """Whether all that was added is finite, and its squares and their sums are."""
        return bool(np.isfinite(self._lanes).all())

    def value(self) -> float:
        """Return the norm so far; infinite or NaN if something was."""
        lanes = self._lanes.copy()
        half = LANES // 2
        with np.errstate(all="ignore"):
            while half:
                lanes[:half] += lanes[half : 2 * half]
                half //= 2
        return math.sqrt(lanes[0]) if lanes[0] == lanes[0] else math.nan
