"""Who may make a call, judged anew at every call; and how errors are told to callers.

In this order: the certificate names one peer in one role, the role may make this call, the peer
does not call too often, its version fits ours, it has not too many calls open, the registry lets it
stand. Only then is its message read, and its size checked.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    FedfactoryError,
    IdentityError,
    IntegrityError,
    ProtocolError,
    RefusedError,
    UnknownNameError,
    UsageError,
)
from fedfactory.contracts.versions import check_versions, own_version
from fedfactory.coordinator.gateway.limits import GatewayLimits, RateLimiter
from fedfactory.coordinator.gateway.open_calls import OpenCall, OpenCalls
from fedfactory.identity.facts import CertificateFacts, facts_of
from fedfactory.identity.roles import Peer, Role, peer_of
from fedfactory.wire.rpc.methods import Kind, Method
from fedfactory.wire.rpc.service import CLOCK, VERSION, Context

log = logging.getLogger("fedfactory.gateway")

Standing = Callable[[Peer, CertificateFacts], None]
# What a method does: takes the call and its request (an iterator of them, if the caller streams),
# returns the answer (an iterator, if answers stream).
Behaviour = Callable[[OpenCall, Any], Any]
_CERTIFICATE: Final = "x509_pem_cert"
_MOST_DETAILS: Final = 1024
_MOST_VERSION: Final = 32  # characters of one that is noted
_OUR_FAULT: Final = "the coordinator failed at this; its log says why"


class TooMuchError(FedfactoryError):
    """More than the gateway grants one peer."""


class NotOfferedError(FedfactoryError):
    """What the caller asks for is not there for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skewed:
    """The version that a site says it is, too far from ours; `at` (Unix seconds) it said so."""

    version: str
    at: float


# The first that fits counts.
CODES: Final = (
    (NotOfferedError, grpc.StatusCode.NOT_FOUND),
    (UnknownNameError, grpc.StatusCode.NOT_FOUND),
    (RefusedError, grpc.StatusCode.FAILED_PRECONDITION),
    (IdentityError, grpc.StatusCode.PERMISSION_DENIED),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (IntegrityError, grpc.StatusCode.DATA_LOSS),
    (TooMuchError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (EnvironmentFailedError, grpc.StatusCode.UNAVAILABLE),
)


class FrontDoor:
    """Lets calls in. `serve` is what service.handlers() wants."""

    def __init__(
        self, standing: Standing, limits: GatewayLimits, behaviours: Mapping[str, Behaviour]
    ) -> None:
        self.calls = OpenCalls(limits)
        self._standing = standing
        self._behaviours = behaviours  # by path
        self._limiter = RateLimiter(limits.rates)
        self._lock = threading.Lock()
        self._skewed: dict[str, Skewed] = {}

    def skewed(self) -> dict[str, Skewed]:
        """Return the sites whose last call was refused for their version."""
        with self._lock:
            return dict(self._skewed)

    def serve(self, method: Method, messages: Iterator[bytes], context: Context) -> Iterator[bytes]:
        """Serve one call of a method."""
        call = self.enter(context, method.roles, method.kind)
        try:
            if method.streams == "up":
                request: Any = _requests(method, call, messages)
            else:
                request = _only(_requests(method, call, messages))
            answer = self._behaviours[method.path](call, request)
            if method.streams == "down":
                yield from map(method.answer.to_wire, answer)
            else:
                yield method.answer.to_wire(answer)
        except FedfactoryError as error:
            refuse(context, error)
        except Exception:
            if not context.is_active():
                return  # the caller has gone, or was cut off
            log.exception("%s failed", method.name)
            context.abort(grpc.StatusCode.INTERNAL, _OUR_FAULT)

    def enter(self, context: Context, roles: frozenset[Role], kind: Kind) -> OpenCall:
        """Judge a call by its caller; return it as one of the open ones, or abort it."""
        try:
            call = self._judged(context, roles, kind)
        except ProtocolError as error:  # of the caller's version: nothing that a message says
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, error.public_message)
        except FedfactoryError as error:
            refuse(context, error)
        except Exception:
            log.exception("a caller could not be judged")
            context.abort(grpc.StatusCode.INTERNAL, _OUR_FAULT)
        if not context.add_callback(lambda: self.calls.remove(call)):
            self.calls.remove(call)
        return call

    def _judged(self, context: Context, roles: frozenset[Role], kind: Kind) -> OpenCall:
        shown: Mapping[str, Any] = context.auth_context()
        peer = peer_of(shown)
        facts = _facts(shown[_CERTIFICATE][0])
        with self._lock:
            admitted = self._limiter.admits(peer.uri, kind, time.monotonic())
        if not admitted:
            raise TooMuchError("too many calls in a short time: wait before the next")
        context.set_trailing_metadata(((CLOCK, f"{time.time():.3f}"), (VERSION, own_version())))
        if peer.role not in roles:
            raise IdentityError(f"a {peer.role} may not make this call")
        version = _version(context)
        if kind != "health":  # any prober's: it says no version
            self._check_version(peer, version)
        if facts.not_after <= time.time():
            raise IdentityError("the certificate has expired: renew it, or enrol anew")
        call = OpenCall(peer, facts, version, context)
        if not self.calls.add(call):
            raise TooMuchError("too many calls are open at once: end some before the next")
        try:
            # Once it is among the open ones: who is cut off just now is refused here, or cut there.
            self._standing(peer, facts)
        except BaseException:
            self.calls.remove(call)
            raise
        return call

    def _check_version(self, peer: Peer, version: str) -> None:
        """Refuse a version too far from ours, and note which site it was: its lead is to see it."""
        try:
            check_versions(version, own_version())
        except ProtocolError:
            if peer.role is Role.SITE:
                noted = Skewed(version=version[:_MOST_VERSION], at=time.time())
                with self._lock:
                    self._skewed[peer.name] = noted
            raise
        if peer.role is Role.SITE and peer.name in self._skewed:
            with self._lock:
                self._skewed.pop(peer.name, None)


_facts = functools.lru_cache(maxsize=4096)(facts_of)


def refuse(context: Context, error: FedfactoryError) -> NoReturn:
    """End a call with the status and the sentence of an error."""
    codes = (code for kind, code in CODES if isinstance(error, kind))
    context.abort(next(codes, grpc.StatusCode.INTERNAL), error.public_message[:_MOST_DETAILS])


def _version(context: Context) -> str:
    told = dict(context.invocation_metadata() or ()).get(VERSION, "")
    return told if isinstance(told, str) else ""


def _requests(method: Method, call: OpenCall, messages: Iterator[bytes]) -> Iterator[Any]:
    for message in messages:
        call.heard()
        if len(message) > method.max_bytes:
            raise TooMuchError(
                f"a message of {method.name} may be {method.max_bytes} bytes, not {len(message)}"
            )
        yield method.request.from_wire(message)


def _only(requests: Iterator[Any]) -> Any:
    for request in requests:
        return request
    raise ProtocolError("the call carries no message")
