"""How much of the gateway one peer may use. Pure: time comes in as an argument (seconds)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fedfactory.wire.rpc.methods import Kind

MOST_BUCKETS: Final = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """So many calls at once, refilled by so many a second (a token bucket)."""

    burst: float
    per_s: float


# One order takes a site two calls; a fast round takes a tenth of a second.
RATES: Final[Mapping[Kind, Rate]] = {
    "order": Rate(burst=600, per_s=200),
    "transfer": Rate(burst=100, per_s=20),
    "listen": Rate(burst=30, per_s=2),
    "answer": Rate(burst=50, per_s=5),
    "document": Rate(burst=100, per_s=20),
    "enrol": Rate(burst=5, per_s=1 / 60),
    "renew": Rate(burst=5, per_s=1 / 60),
    "health": Rate(burst=30, per_s=5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """What the gateway grants. `max_model_bytes` is the longest blob an operator may upload.

    A site needs a doorbell, a transfer and a call; `open_calls` more are a fault, or
    an attack. A transfer that moves less than `slowest_bytes_per_s` over `slow_after_s` is ended,
    and so is a call whose message has not come after `message_within_s`.
    """

    max_model_bytes: int
    rates: Mapping[Kind, Rate] = field(default_factory=lambda: RATES)
    open_calls: int = 16
    slowest_bytes_per_s: int = 64 * 1024
    slow_after_s: float = 30.0
    message_within_s: float = 10.0


@dataclass(slots=True)
class RateLimiter:
    """Token buckets by peer and kind of call; the least recently used ones are forgotten."""

    rates: Mapping[Kind, Rate]
    _buckets: OrderedDict[tuple[str, Kind], tuple[float, float]] = field(
        default_factory=OrderedDict
    )

    def admits(self, peer: str, kind: Kind, now: float) -> bool:
        """Count one call of a peer's at the time `now`; False if it is one too many."""
        rate = self.rates[kind]
        tokens, then = self._buckets.pop((peer, kind), (rate.burst, now))
        tokens = min(rate.burst, tokens + max(0.0, now - then) * rate.per_s)
        admitted = tokens >= 1.0
        self._buckets[peer, kind] = (tokens - 1.0 if admitted else tokens, max(now, then))
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.popitem(last=False)
        return admitted
