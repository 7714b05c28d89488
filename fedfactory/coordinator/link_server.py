"""The daemon's end of a run's link: serves the run's process, and says what happens.

It holds Flower's engine for that process: what the process pushes waits here for the sites, and
what they reply goes to it at once, with their uploads claimed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.flower_seam import Engine, Fetched
from fedfactory.coordinator.running.link import LinkRing
from fedfactory.coordinator.unix_socket import bound_writes, hang_up

if TYPE_CHECKING:
    from fedfactory.coordinator.gateway.gateway import Gateway

log = logging.getLogger("fedfactory.link")

_BEAT: Final = "beat"
_DISCARD: Final = "discard"  # nobody waits for it to be done
Outbox = queue.SimpleQueue[Mapping[str, Any] | None]


class LinkServer:
    """Serves one run's process at the socket `client` until either side hangs up.

    `sites` are the run's; `moved_before` is the traffic of before the run had its place, `rings` is
    what is to be said to the process first. `over` is called when the link has ended. The run must
    be open at the gateway (Gateway.open_run) while it is served.
    """

    def __init__(
        self,
        client: socket.socket,
        gateway: Gateway,
        run_id: str,
        sites: tuple[str, ...],
        *,
        moved_before: Mapping[str, Mapping[str, int]],
        rings: Iterable[LinkRing] = (),
        over: Callable[[], object] = lambda: None,
    ) -> None:
        self._gateway = gateway
        self._run_id = run_id
        self._sites = frozenset(sites)
        self._engine: Engine | None = None
        self._over = over
        self._lock = threading.Lock()
        self._outbox: Outbox = queue.SimpleQueue()
        self._first = list(rings)
        self._greeted = False
        self._alive_at = time.monotonic()
        self._busy = False
        self._moved_before = moved_before
        self._client = client
        bound_writes(client)
        gateway.subscribe(self)
        gateway.open_mail(run_id, self)
        self._thread = threading.Thread(target=self._serve, name="link", daemon=True)
        self._thread.start()

    @property
    def greeted(self) -> bool:
        """Whether the process has said hello."""
        with self._lock:
            return self._greeted

    @property
    def ended(self) -> bool:
        """Whether either side has hung up."""
        with self._lock:
            return self._client.fileno() < 0

    @property
    def alive_at(self) -> float:
        """When the process last gave a sign of life (time.monotonic() seconds).

        It beats every link.BEAT_S seconds. Before the first one it is when this server began.
        """
        with self._lock:
            return time.monotonic() if self._busy else self._alive_at

    def tell(self, ring: LinkRing) -> None:
        """Tell the process something; one that has not said hello yet hears it then. No wait."""
        with self._lock:
            if self._greeted:
                self._outbox.put(encode(ring))
            else:
                self._first.append(ring)

    # ---- what the gateway tells (Listener) -------------------------------------------------

    def came(self, site: str) -> None:
        """See gateway.Listener."""
        self._happened("site_connected", site)

    def went(self, site: str) -> None:
        """See gateway.Listener."""
        self._happened("site_lost", site)

    def _happened(self, event: Any, site: str) -> None:
        # Before the engine is there, the greeting is still to say who is here.
        if self._engine is not None and site in self._sites:
            self.tell(LinkRing(event=event, site=site))

    # ---- what sites ask for (Mailbox) ------------------------------------------------------

    def fetch(self, site: str) -> Fetched | None:
        """See mail.Mailbox."""
        return None if self._engine is None else self._engine.fetch(site)

    def waits(self, site: str) -> bool:
        """See mail.Mailbox."""
        return self._engine is not None and self._engine.waits(site)

    def reply(self, site: str, message_id: str, text: str, digest: str | None) -> bool | None:
        """See mail.Mailbox."""
        engine = self._engine
        if engine is None or not (begun := engine.begin_reply(site, message_id)):
            return None if engine is None or begun is None else True
        store, claimed, given = self._gateway.store, False, False
        try:
            claimed = digest is not None and store.claim(self._run_id, site, digest)
            reply = engine.pull(message_id) if engine.reply(message_id, text) else None
            if reply is not None:
                given = self._give(message_id, reply, digest if claimed else None)
        finally:
            engine.postpone(message_id)  # nothing, if it is answered
            if claimed and digest is not None and not given:
                store.unclaim(self._run_id, site, digest)
        return given

    def _give(self, message_id: str, reply: bytes, claim: str | None) -> bool:
        """Give a reply to the process; False if it is gone."""
        with self._lock:
            if self._client.fileno() < 0:
                return False
            found = base64.b64encode(reply).decode()
            self._outbox.put({"reply": message_id, "flower": found, "claimed": claim})
        return True

    # ---- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Hang up; the process, if it still lives, ends."""
        hang_up(self._client)
        self._thread.join()

    def _serve(self) -> None:
        writer = threading.Thread(
            target=_write, args=(self._client, self._outbox), name="link-writer", daemon=True
        )
        writer.start()
        try:
            with self._client.makefile("rb") as lines:
                for line in lines:
                    self._hear(json.loads(line))
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("the link broke: %s", error)
        finally:
            self._gateway.close_mail(self._run_id, self)
            self._gateway.unsubscribe(self)
            self._outbox.put(None)
            with self._lock:
                self._busy = False  # with a call that broke: the process may be stuck
                hang_up(self._client)
            writer.join()
            self._over()

    def _hear(self, call: Mapping[str, Any]) -> None:
        with self._lock:
            self._busy, self._alive_at = call["call"] != _BEAT, time.monotonic()
        if call["call"] == _BEAT:
            return
        answer = self._answer(call)
        with self._lock:
            self._busy, self._alive_at = False, time.monotonic()
            if call["call"] == "hello":
                self._greeted = True
                answer = {**answer, "first": [encode(ring) for ring in self._first]}
            if call["call"] != _DISCARD:
                self._outbox.put(answer)

    def _answer(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return {"answer": self._handle(call)}
        except (FedfactoryError, OSError, DecodeError, KeyError, TypeError, ValueError) as error:
            log.warning("%s failed: %s", call["call"], error)
            return {"error": f"{type(error).__name__}: {error}"}

    def _handle(self, call: Mapping[str, Any]) -> Any:
        gateway, run = self._gateway, self._run_id
        match call["call"]:
            case "hello":
                return self._greeting()
            case "restore":
                claims = [(str(site), str(digest)) for site, digest in call["claims"]]
                gateway.store.restore(run, claims, call["own"])
            case "offer":
                for site, digest in call["offers"]:
                    gateway.offer(run, site, digest)
            case "push":
                return self._push(call["messages"])
            case "adopt":
                ref = BlobRef(digest=call["digest"], bytes=call["bytes"])
                gateway.store.adopt(run, Path(call["path"]), ref)
            case "discard":
                for digest in call["digests"]:
                    gateway.discard(run, digest)
            case "traffic":
                return self._traffic()
            case unknown:
                raise KeyError(f"no such call: {unknown}")
        return None

    def _greeting(self) -> dict[str, Any]:
        self._engine = engine = Engine(sorted(self._sites))
        return {
            "connected": [site for site in self._gateway.connected() if site in self._sites],
            "blobs": str(self._gateway.store.root),
            "run": engine.run,
            "nodes": engine.nodes,
        }

    def _push(self, messages: Iterable[str]) -> list[str | None]:
        """Take messages one by one, and ring the sites that they are for."""
        assert self._engine is not None, "a process pushes after its hello"
        pushed = [self._engine.push(base64.b64decode(message)) for message in messages]
        for site in dict.fromkeys(found[1] for found in pushed if found is not None):
            self._gateway.ring(site)
        return [None if found is None else found[0] for found in pushed]

    def _traffic(self) -> dict[str, dict[str, int]]:
        """Return what the run's sites moved while the run was served here."""
        before = self._moved_before
        return {
            site: {way: n - before.get(site, {}).get(way, 0) for way, n in moved.items()}
            for site, moved in self._gateway.traffic().items()
            if site in self._sites
        }


def _write(client: socket.socket, outbox: Outbox) -> None:
    """Write what is put into the outbox; hang up on a process that has stopped reading."""
    with contextlib.suppress(OSError):
        while (line := outbox.get()) is not None:
            client.sendall(json.dumps(line).encode() + b"\n")
    hang_up(client)
