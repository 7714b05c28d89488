"""The Unix socket between gateway and ServerApp: the gateway owns blobs, the ServerApp the run.

JSON lines. The ServerApp calls (hello, offer, ring, adopt, claim, discard, traffic) and is answered
in order; the gateway also pushes rings: a reply to pull, a site that came or went, a stop.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import EnvironmentFailedError, FedfactoryError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.blobs import blob_path
from fedfactory.coordinator.unix_socket import bound_writes, connect, hang_up, is_same_user, listen

if TYPE_CHECKING:
    from fedfactory.coordinator.gateway import Gateway

log = logging.getLogger("fedfactory.link")

RingName = Literal["reply", "site_connected", "site_lost", "stop", "failed", "closed"]
CALL_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRing:
    """What the gateway tells the ServerApp; a field is empty where it means nothing.

    `message` is the id of the Flower message whose reply is there, whole.
    """

    event: RingName
    site: str = ""
    message: str = ""
    reason: str = ""


class LinkServer:
    """The gateway's end: serves one ServerApp of the same user at a time.

    `ended` says that a ServerApp was here and is gone.
    """

    def __init__(self, path: Path, gateway: Gateway, staging: Path) -> None:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ended = False
        self._gateway = gateway
        self._staging = staging
        self._path = path
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        self._last_word: LinkRing | None = None  # a stop is also for a ServerApp still to come
        self._listener = listen(path)
        gateway.on_reply = lambda message: self._push(LinkRing(event="reply", message=message))
        gateway.on_connect = lambda site: self._push(LinkRing(event="site_connected", site=site))
        gateway.on_disconnect = lambda site: self._push(LinkRing(event="site_lost", site=site))
        self._thread = threading.Thread(target=self._accept, name="link", daemon=True)
        self._thread.start()

    def stop(self, reason: str) -> None:
        """Ask the run to stop; a ServerApp that is not here yet hears it when it comes."""
        self._push(LinkRing(event="stop", reason=reason))

    def fail(self, reason: str) -> None:
        """Tell the run that something outside its rounds broke."""
        self._push(LinkRing(event="failed", reason=reason))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        hang_up(self._listener)
        with self._lock:
            client = self._client
        if client is not None:
            hang_up(client)
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        serving: threading.Thread | None = None
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                bound_writes(client)
                with self._lock:
                    welcome = self._client is None and is_same_user(client)
                    if welcome:
                        self._client, self.ended = client, False
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
        try:
            with client.makefile("rb") as lines:
                for line in lines:
                    self._send(self._answer(line))
        except (OSError, ValueError) as error:
            log.warning("the link broke: %s", error)
        finally:
            with self._lock:
                self._client, self.ended = None, True
            hang_up(client)

    def _answer(self, line: bytes) -> Mapping[str, Any]:
        call = json.loads(line)
        try:
            return {"answer": self._handle(call)}
        except (FedfactoryError, OSError, KeyError, TypeError) as error:
            log.warning("%s failed: %s", call, error)
            return {"error": f"{type(error).__name__}: {error}"}

    def _handle(self, call: Mapping[str, Any]) -> Any:  # noqa: C901, one case per call
        gateway = self._gateway
        match call["call"]:
            case "hello":
                return {
                    "roster": gateway.roster(),
                    "connected": gateway.connected(),
                    "blobs": str(gateway.store.root),
                    "staging": str(self._staging),
                    "last_word": encode(self._last_word),
                }
            case "offer":
                for site, digest in call["offers"].items():
                    gateway.offer(site, digest)
            case "ring":
                for site in call["sites"]:
                    gateway.ring(site)
            case "adopt":
                ref = BlobRef(digest=call["digest"], bytes=call["bytes"])
                gateway.store.adopt(Path(call["path"]), ref)
            case "claim":
                return gateway.store.claim(call["site"], call["digest"])
            case "discard":
                for digest in call["digests"]:
                    gateway.discard(digest)
            case "traffic":
                return gateway.traffic()
            case unknown:
                raise KeyError(f"no such call: {unknown}")
        return None

    def _push(self, ring: LinkRing) -> None:
        if ring.event in ("stop", "failed"):
            self._last_word = ring
        self._send(encode(ring))

    def _send(self, value: Mapping[str, Any]) -> None:
        with self._lock:
            if self._client is None:
                return
            try:
                self._client.sendall(json.dumps(value).encode() + b"\n")
            except OSError:  # gone, or it has not read for long: its own thread cleans up
                hang_up(self._client)


class Link:
    """The ServerApp's end. `events` holds what the gateway rings; 'closed' when it is gone.

    Every call raises EnvironmentFailedError when the gateway is gone or could not do it.
    """

    def __init__(self, path: Path) -> None:
        self.events: queue.SimpleQueue[LinkRing] = queue.SimpleQueue()
        self.staging = Path()
        self._answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._calling = threading.Lock()
        self._blobs = Path()
        self._connected: list[str] = []
        self._socket = connect(path)
        self._thread = threading.Thread(target=self._read, name="link", daemon=True)
        self._thread.start()

    def hello(self) -> dict[str, int]:
        """Introduce ourselves; return the roster: site to Flower node id."""
        hello = self._call({"call": "hello"})
        self._blobs = Path(hello["blobs"])
        self.staging = Path(hello["staging"])
        self._connected = hello["connected"]
        if hello["last_word"] is not None:
            self.events.put(LinkRing(**hello["last_word"]))
        return dict(hello["roster"])

    def connected(self) -> Sequence[str]:
        """Sites that were connected at `hello`; later changes arrive as events."""
        return self._connected

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies."""
        return blob_path(self._blobs, digest)

    def offer(self, offers: Mapping[str, str]) -> None:
        """Let each site download one digest."""
        self._call({"call": "offer", "offers": dict(offers)})

    def ring(self, sites: Iterable[str]) -> None:
        """Ring the sites' doorbells."""
        self._call({"call": "ring", "sites": list(sites)})

    def adopt(self, path: Path, ref: BlobRef) -> None:
        """Hand a file of ours to the gateway as a blob; the file moves (same file system)."""
        self._call({"call": "adopt", "path": str(path), "digest": ref.digest, "bytes": ref.bytes})

    def claim(self, site: str, digest: str) -> bool:
        """Keep what a site uploaded until it is discarded; False if it sent no such blob, whole."""
        return bool(self._call({"call": "claim", "site": site, "digest": digest}))

    def discard(self, digests: Iterable[str]) -> None:
        """Give up one hold on a blob each time it is named: a site's upload before our own."""
        self._call({"call": "discard", "digests": sorted(digests)})

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes down to and up from each site so far."""
        return dict(self._call({"call": "traffic"}))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        hang_up(self._socket)
        self._thread.join()

    def _call(self, call: Mapping[str, Any]) -> Any:
        with self._calling:  # answers come in the order of the calls
            try:
                self._socket.sendall(json.dumps(call).encode() + b"\n")
                answer = self._answers.get(timeout=CALL_TIMEOUT_S)
            except (OSError, queue.Empty) as error:
                hang_up(self._socket)  # a late answer would be taken for the next call's
                raise EnvironmentFailedError("the gateway no longer answers") from error
        if "error" in answer:
            raise EnvironmentFailedError(f"the gateway could not {call['call']}: {answer['error']}")
        return answer["answer"]

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                value = json.loads(line)
                if "event" in value:
                    self.events.put(LinkRing(**value))
                else:
                    self._answers.put(value)
        hang_up(self._socket)
        self.events.put(LinkRing(event="closed"))
        self._answers.put({"error": "it is gone"})
