"""Independent generators from one seed: everything random names what it is for.

Only for what need not be secret (initial models, shuffles, partitions). Noise and sampling under
differential privacy never come from here: they take a CSPRNG keyed by the OS.
"""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: str | int) -> int:
    """Return 63 bits of SHA-256 over the parts, in order.

    The parts are framed as JSON, so ('a', 'bc') and ('ab', 'c') differ, as do 1 and '1'.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
