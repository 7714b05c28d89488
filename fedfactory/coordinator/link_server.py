"""The gateway's end of a run's link: serves the run's ServerApp, and tells it what happens."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.running.link import LinkRing
from fedfactory.coordinator.unix_socket import bound_writes, hang_up, is_same_user, listen

if TYPE_CHECKING:
    from fedfactory.coordinator.gateway.gateway import Gateway

log = logging.getLogger("fedfactory.link")

_BEAT: Final = "beat"
Outbox = queue.SimpleQueue[Mapping[str, Any] | None]


class LinkServer:
    """Serves one run's ServerApp, of the same user, one at a time; `sites` are the run's.

    Listens to the gateway (replied, came, went) from construction to close. The run must be open at
    the gateway (Gateway.open_run) while it is served.
    """

    def __init__(self, path: Path, gateway: Gateway, run_id: str, sites: tuple[str, ...]) -> None:
        self._gateway = gateway
        self._run_id = run_id
        self._sites = frozenset(sites)
        self._path = path
        self._lock = threading.Lock()
        self._outbox: Outbox = queue.SimpleQueue()
        self._client: socket.socket | None = None
        self._pid: int | None = None
        self._ended = False
        self._alive_at = time.monotonic()
        self._busy = False
        self._moved_before = gateway.traffic()
        self._told: dict[str, LinkRing] = {}  # what is also for a ServerApp still to come
        self._listener = listen(path)
        gateway.subscribe(self)
        self._thread = threading.Thread(target=self._accept, name="link", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether a ServerApp was here and is gone."""
        with self._lock:
            return self._ended

    @property
    def pid(self) -> int | None:
        """Process id of the ServerApp that is here; None before its hello and once it is gone."""
        with self._lock:
            return self._pid

    @property
    def alive_at(self) -> float:
        """When the ServerApp last gave a sign of life (time.monotonic() seconds).

        It beats every link.BEAT_S seconds. Before the first one it is when this server began, or
        when the last ServerApp went.
        """
        with self._lock:
            return time.monotonic() if self._busy else self._alive_at

    def stop(self, reason: str, *, after_round: bool) -> None:
        """Ask the run to stop; a ServerApp that is not here yet hears it when it comes."""
        at = time.time()
        self._tell("stop", LinkRing(event="stop", reason=reason, after_round=after_round, at=at))

    def left(self, site: str, code: str) -> None:
        """Say that a site will not come back (`code` of REFUSALS), also to a ServerApp to come."""
        if site in self._sites:
            self._tell(f"left {site}", LinkRing(event="site_left", site=site, code=code))

    # ---- what the gateway tells (Listener) -------------------------------------------------

    def replied(self, message_id: str) -> None:
        """See gateway.Listener. The ServerApp knows which messages are its own."""
        self._push(LinkRing(event="reply", message=message_id))

    def came(self, site: str) -> None:
        """See gateway.Listener."""
        if site in self._sites:
            self._push(LinkRing(event="site_connected", site=site))

    def went(self, site: str) -> None:
        """See gateway.Listener."""
        if site in self._sites:
            self._push(LinkRing(event="site_lost", site=site))

    # ---- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Hang up; the ServerApp, if one is here, ends."""
        self._gateway.unsubscribe(self)
        hang_up(self._listener)
        with self._lock:
            client = self._client
        if client is not None:
            hang_up(client)
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _accept(self) -> None:
        serving: threading.Thread | None = None
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                bound_writes(client)
                with self._lock:
                    welcome = self._client is None and is_same_user(client)
                    if welcome:
                        self._client, self._ended = client, False
                        self._outbox = queue.SimpleQueue()
                        self._alive_at = time.monotonic()
                if welcome:
                    serving = threading.Thread(
                        target=self._serve, args=(client,), name="link-client", daemon=True
                    )
                    serving.start()
                else:
                    log.warning("turned away: not our user, or there is a ServerApp already")
                    hang_up(client)
        if serving is not None:
            serving.join()

    def _serve(self, client: socket.socket) -> None:
        outbox = self._outbox
        writer = threading.Thread(target=_write, args=(client, outbox), name="link-writer")
        writer.start()
        try:
            with client.makefile("rb") as lines:
                for line in lines:
                    self._hear(json.loads(line))
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("the link broke: %s", error)
        finally:
            with self._lock:
                self._client, self._pid, self._ended = None, None, True
                self._busy, self._alive_at = False, time.monotonic()
            outbox.put(None)
            hang_up(client)
            writer.join()

    def _hear(self, call: Mapping[str, Any]) -> None:
        with self._lock:
            self._busy, self._alive_at = call["call"] != _BEAT, time.monotonic()
        if call["call"] == _BEAT:
            return
        if call["call"] == "hello":
            with self._lock:
                self._pid = int(call["pid"])
        answer = self._answer(call)
        with self._lock:
            self._busy, self._alive_at = False, time.monotonic()
        self._outbox.put(answer)

    def _answer(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return {"answer": self._handle(call)}
        except (FedfactoryError, OSError, KeyError, TypeError, ValueError) as error:
            log.warning("%s failed: %s", call, error)
            return {"error": f"{type(error).__name__}: {error}"}

    def _handle(self, call: Mapping[str, Any]) -> Any:  # noqa: C901, PLR0912, one case per call
        gateway, run = self._gateway, self._run_id
        match call["call"]:
            case "hello":
                return self._greeting()
            case "roster":
                return self._roster()
            case "restore":
                claims = [(str(site), str(digest)) for site, digest in call["claims"]]
                gateway.store.restore(run, claims, call["own"])
            case "offer":
                for site, digest in call["offers"]:
                    gateway.offer(run, site, digest)
            case "ring":
                for site in call["sites"]:
                    gateway.ring(site)
            case "adopt":
                ref = BlobRef(digest=call["digest"], bytes=call["bytes"])
                gateway.store.adopt(run, Path(call["path"]), ref)
            case "claim":
                return gateway.store.claim(run, call["site"], call["digest"])
            case "discard":
                for digest in call["digests"]:
                    gateway.discard(run, digest)
            case "traffic":
                return self._traffic()
            case unknown:
                raise KeyError(f"no such call: {unknown}")
        return None

    def _greeting(self) -> dict[str, Any]:
        with self._lock:
            told = [encode(ring) for ring in self._told.values()]
        return {
            "connected": [site for site in self._gateway.connected() if site in self._sites],
            "blobs": str(self._gateway.store.root),
            "told": told,
        }

    def _traffic(self) -> dict[str, dict[str, int]]:
        """Return what the run's sites moved while the run was served here."""
        before = self._moved_before
        return {
            site: {way: n - before.get(site, {}).get(way, 0) for way, n in moved.items()}
            for site, moved in self._gateway.traffic().items()
            if site in self._sites
        }

    def _roster(self) -> dict[str, int]:
        return {s: node for s, node in self._gateway.roster().items() if s in self._sites}

    def _tell(self, what: str, ring: LinkRing) -> None:
        with self._lock:
            self._told[what] = ring
        self._push(ring)

    def _push(self, ring: LinkRing) -> None:
        """Tell the ServerApp that is here; never waits for it."""
        with self._lock:
            if self._pid is not None:
                self._outbox.put(encode(ring))


def _write(client: socket.socket, outbox: Outbox) -> None:
    """Write what is put into the outbox; hang up on a ServerApp that has stopped reading."""
    with contextlib.suppress(OSError):
        while (line := outbox.get()) is not None:
            client.sendall(json.dumps(line).encode() + b"\n")
    hang_up(client)
