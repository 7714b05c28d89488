"""The calls that are open now: how many a peer has, and which must end before they want to.

A call ends early when its peer is cut off, when the certificate it was made with ends, when its
message does not come, or when it moves too slowly. One thread looks once a second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Final

import grpc

from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError, IdentityError
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.identity.facts import CertificateFacts
from fedfactory.identity.roles import Peer

log = logging.getLogger("fedfactory.gateway")

LOOK_EVERY_S: Final = 1.0


class OpenCall:
    """One call under way: who calls, with which certificate and version, and how it gets on."""

    def __init__(
        self, peer: Peer, facts: CertificateFacts, version: str, context: grpc.ServicerContext
    ) -> None:
        self.peer = peer
        self.facts = facts
        self.version = version
        self.ended_by: FedfactoryError | None = None
        self._context = context
        self._wake: Callable[[], None] | None = None
        self._over = False
        self._lock = threading.Lock()
        self._awaits_message_since: float | None = time.monotonic()
        self._measured = False
        self._moved = 0
        self._window_began = 0.0

    def heard(self) -> None:
        """The call's message has come."""
        self._awaits_message_since = None

    def measure(self) -> None:
        """From now on the call must move bytes."""
        self._window_began = time.monotonic()
        self._measured = True

    def moved(self, count: int) -> None:
        """So many bytes were moved."""
        self._moved += count

    def wakes_by(self, wake: Callable[[], None]) -> None:
        """Be woken when the call must end (it then raises `ended_by`) or the caller has gone.

        A call that is not woken is broken off.
        """
        with self._lock:
            self._wake = wake
            over = self._over
        if over:
            wake()

    def end(self, why: FedfactoryError) -> None:
        """End the call, from any thread."""
        with self._lock:
            if self._over:
                return
            self._over, self.ended_by = True, why
            wake = self._wake
        if wake is not None:
            wake()
        else:
            self._context.cancel()  # type: ignore[no-untyped-call]

    def left(self) -> None:
        """The call is over, or its caller has gone."""
        with self._lock:
            self._over = True
            wake = self._wake
        if wake is not None:
            wake()

    def due(self, limits: GatewayLimits, now: float, unix_now: float) -> FedfactoryError | None:
        """Return why the call must end now, None if it need not."""
        if unix_now >= self.facts.not_after:
            return IdentityError("the certificate has expired: renew it, or enrol anew")
        waited_since = self._awaits_message_since
        if waited_since is not None and now - waited_since > limits.message_within_s:
            return EnvironmentFailedError("the call's message did not come in time")
        if self._measured and now - self._window_began >= limits.slow_after_s:
            least = limits.slowest_bytes_per_s * (now - self._window_began)
            if self._moved < least:
                return EnvironmentFailedError("the transfer is too slow")
            self._moved, self._window_began = 0, now
        return None


class OpenCalls:
    """All open calls, by peer."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._calls: dict[Peer, set[OpenCall]] = defaultdict(set)
        self._stopped = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="gateway-keeper", daemon=True)

    def start(self) -> None:
        """Begin to look after the calls."""
        self._keeper.start()

    def stop(self) -> None:
        """Look after them no more."""
        self._stopped.set()
        if self._keeper.is_alive():
            self._keeper.join()

    def add(self, call: OpenCall) -> bool:
        """Count a call; False if its peer has too many already."""
        with self._lock:
            mine = self._calls[call.peer]
            if len(mine) >= self._limits.open_calls:
                return False
            mine.add(call)
            return True

    def remove(self, call: OpenCall) -> None:
        """The call is over."""
        call.left()
        with self._lock:
            mine = self._calls.get(call.peer)
            if mine is not None:
                mine.discard(call)
                if not mine:
                    del self._calls[call.peer]

    def count(self, peer: Peer) -> int:
        """How many calls a peer has open."""
        with self._lock:
            return len(self._calls.get(peer, ()))

    def cut(self, peer: Peer, why: FedfactoryError) -> None:
        """End every call of a peer's."""
        with self._lock:
            mine = list(self._calls.get(peer, ()))
        for call in mine:
            call.end(why)

    def _keep(self) -> None:
        while not self._stopped.wait(LOOK_EVERY_S):
            with self._lock:
                calls = [call for mine in self._calls.values() for call in mine]
            now, unix_now = time.monotonic(), time.time()
            for call in calls:
                why = call.due(self._limits, now, unix_now)
                if why is not None:
                    log.info("a call of %s ends: %s", call.peer.uri, why.public_message)
                    call.end(why)
