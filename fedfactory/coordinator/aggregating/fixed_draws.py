"""Fixed random numbers for code that draws from the process-wide generators."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded(text: str) -> Iterator[None]:
    """Seed the process-wide generators that Flower's strategies draw from; restore them after."""
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(text)
    np.random.seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
