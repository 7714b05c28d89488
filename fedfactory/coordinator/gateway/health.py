"""The standard health service (grpc.health.v1), for every member."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from fedfactory.contracts.errors import UnknownNameError
from fedfactory.coordinator.gateway.open_calls import OpenCall
from fedfactory.wire.rpc.methods import ENROLMENT, GATEWAY, OPERATIONS

SERVICES: Final = ("", GATEWAY, ENROLMENT, OPERATIONS)


class Health:
    """Says SERVING until `stop`, of each service; "" is the whole."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serving = True
        self._watchers: set[threading.Event] = set()

    def stop(self) -> None:
        """Say NOT_SERVING from now on, also to those who watch."""
        with self._lock:
            self._serving = False
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.set()

    def check(self, call: OpenCall, request: HealthCheckRequest) -> HealthCheckResponse:
        """Answer how a service is now.

        Raises:
            UnknownNameError: there is no such service.
        """
        del call
        if request.service not in SERVICES:
            raise UnknownNameError("service", request.service[:100], SERVICES)
        return self._now()

    def watch(self, call: OpenCall, request: HealthCheckRequest) -> Iterator[HealthCheckResponse]:
        """Say how a service is, and again when that changes."""
        if request.service not in SERVICES:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        else:
            yield self._now()
        woken = threading.Event()
        with self._lock:
            self._watchers.add(woken)
            if not self._serving:
                woken.set()
        call.wakes_by(woken.set)
        woken.wait()
        with self._lock:
            self._watchers.discard(woken)
        if call.ended_by is not None:
            raise call.ended_by
        yield self._now()

    def _now(self) -> HealthCheckResponse:
        with self._lock:
            serving = self._serving
        return HealthCheckResponse(
            status=HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        )
