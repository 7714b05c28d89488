"""The way to the one host:port: its name, proxy, TLS, admission, and the gateway's clock.

Nothing is asked of the gateway but an array set that does not exist: its refusal says all.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import grpc

from fedfactory.contracts.errors import IdentityError
from fedfactory.identity.enrolment import ClockBehindError, Identity, is_enrolled, load_identity
from fedfactory.identity.lifetime import due_in_s, ends_at
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.service import CLOCK, GatewayCalls
from fedfactory.wire.tls import is_loopback, open_channel
from site_agents.doctor.clock import SET_CLOCK, judge_skew
from site_agents.doctor.finding import Finding, fail, ok, warn
from site_agents.enrolling import pending

AREA: Final = "gateway"
PATIENCE_S: Final = 10.0
DAY_S: Final = 86400.0
# Of what is left when it falls due: so much may pass while the agent is down for the night.
LATE_SHARE: Final = 0.25
_ENROL: Final = "ask the consortium for an invitation, then: site-agent enrol FILE"
_NO_ARRAYS: Final = "sha256:" + "0" * 64
# As grpc reads them: the first that is set counts (grpc's doc/environment_variables.md).
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")


@dataclass(frozen=True, slots=True)
class Heard:
    """How the gateway answered. `clock` is its time in Unix seconds, `took_s` how long it took."""

    code: str
    details: str
    clock: float | None
    asked_at: float
    took_s: float


def examine_way(address: str, identity_folder: Path) -> Iterator[Finding]:
    """Go the way that the agent goes."""
    proxy = proxy_for(address, os.environ)
    if proxy:
        yield ok(AREA, f"{address} by the proxy that {proxy} names")
    else:
        found = _reach(address)
        yield found
        if found.level == "fail":
            return
    if not is_enrolled(identity_folder):
        yield _not_enrolled(identity_folder.parent)
        return
    try:
        identity = load_identity(identity_folder)
    except ClockBehindError as error:
        yield fail("clock", str(error), SET_CLOCK)
        return
    except IdentityError as error:
        yield fail("identity", f"{error} {error.diagnostic or ''}".strip(), _ENROL)
        return
    yield judge_lifetime(due_in_s(identity), ends_at(identity) - time.time())
    yield from judge_answer(address, _ask(address, identity))


def judge_answer(address: str, heard: Heard) -> Iterator[Finding]:
    """Say what the gateway's answer means. Pure."""
    if heard.code == "NOT_FOUND":
        yield ok(
            "tls", f"{address} and this site know each other; answered in {heard.took_s:.2f} s"
        )
    elif heard.code == "FAILED_PRECONDITION":
        yield fail("version", heard.details, "install a version that the coordinator works with")
    elif heard.code in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
        yield fail("identity", f"{address} refuses this site: {heard.details}", _ENROL)
    elif "CERTIFICATE_VERIFY_FAILED" in heard.details:
        yield fail(
            "tls",
            f"{address} shows a certificate that is not of this site's authority",
            "check `gateway:` in agent.yaml; something may stand between (a proxy that opens TLS)",
        )
    else:
        yield fail(
            "tls",
            f"{address} does not answer: {heard.code}: {heard.details}",
            "ask the consortium lead whether the coordinator runs and takes this certificate",
        )
    if heard.clock is not None:
        middle = heard.asked_at + heard.took_s / 2
        yield judge_skew(middle - heard.clock, heard.took_s / 2)


def proxy_for(address: str, environment: Mapping[str, str]) -> str | None:
    """Return the variable whose proxy grpc uses for 'host:port'; None if it goes straight. Pure."""
    host = address.rpartition(":")[0].strip("[]")
    if is_loopback(address):
        return None
    spared = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
    names = [name.strip() for name in spared.split(",") if name.strip()]
    if "*" in names or any(host.endswith(name) for name in names):
        return None
    return next((name for name in _PROXIES if environment.get(name)), None)


def _reach(address: str) -> Finding:
    host, _, port = address.rpartition(":")
    began = time.monotonic()
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PATIENCE_S):
            took_ms = 1000 * (time.monotonic() - began)
            return ok(AREA, f"{address} is reached in {took_ms:.0f} ms, without a proxy")
    except socket.gaierror:
        return fail(
            AREA, f"{host}: no such host", "check `gateway:` in agent.yaml, and this machine's DNS"
        )
    except OSError as error:
        return fail(
            AREA,
            f"{address} cannot be reached: {error.strerror or error}",
            f"have outbound TCP to {address} opened for this machine, or set https_proxy;"
            " nothing else needs to be open",
        )


def judge_lifetime(due_s: float, left_s: float) -> Finding:
    """Judge a certificate to be renewed in `due_s`, that ends in `left_s`. Pure."""
    text = f"enrolled; the certificate holds for {left_s / DAY_S:.1f} days more"
    if due_s < -LATE_SHARE * left_s:
        return warn(
            "identity",
            f"{text}, and should have been renewed by now",
            "the agent renews it by itself while it is connected: site-agent run",
        )
    return ok("identity", f"{text}, and is renewed by itself in {max(0.0, due_s) / DAY_S:.1f} days")


def _not_enrolled(home: Path) -> Finding:
    if pending(home):
        return warn(
            "identity",
            "an invitation waits in the home",
            "the agent enrols with it when it runs: site-agent run",
        )
    return fail("identity", "not enrolled", _ENROL)


def _ask(address: str, identity: Identity) -> Heard:
    channel = open_channel(address, identity)
    asked_at, began = time.time(), time.monotonic()
    try:
        for _ in GatewayCalls(channel).download(
            pb.DownloadRequest(digest=_NO_ARRAYS, offset=0), timeout=PATIENCE_S
        ):
            pass
    except grpc.RpcError as error:
        call = cast("grpc.Call", error)
        took_s = time.monotonic() - began
        trailing = dict(call.trailing_metadata() or ())
        clock = trailing.get(CLOCK)
        return Heard(
            call.code().name,
            str(call.details()),
            float(clock) if clock is not None else None,
            asked_at,
            took_s,
        )
    finally:
        channel.close()
    return Heard("OK", "it sent what does not exist", None, asked_at, time.monotonic() - began)
