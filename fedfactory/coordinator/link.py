"""The Unix socket between gateway and ServerApp: the gateway owns blobs, the ServerApp the run.

JSON lines. The ServerApp calls (hello, offer, ring, adopt, discard, traffic) and is answered in
order; the gateway also pushes rings: a reply to pull, a site that came or went, a stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from fedfactory.contracts.codec import encode
from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.blobs import blob_path

if TYPE_CHECKING:
    from fedfactory.coordinator.gateway import Gateway

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
    """The gateway's end: serves one ServerApp of the same user."""

    def __init__(self, path: Path, gateway: Gateway, staging: Path) -> None:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._gateway = gateway
        self._staging = staging
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        self.ended = False
        self._listener = socket.socket(socket.AF_UNIX)
        path.unlink(missing_ok=True)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(1)
        gateway.on_reply = lambda message: self._push(LinkRing(event="reply", message=message))
        gateway.on_connect = lambda site: self._push(LinkRing(event="site_connected", site=site))
        gateway.on_disconnect = lambda site: self._push(LinkRing(event="site_lost", site=site))
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self, reason: str) -> None:
        """Ask the run to stop."""
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
        self._listener.close()
        if self._client is not None:
            self._client.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            _check_same_user(client)
            with self._lock:
                self._client = client
            with client.makefile("rb") as lines:
                for line in lines:
                    self._send({"answer": self._handle(json.loads(line))})
        self.ended = True

    def _handle(self, call: Mapping[str, Any]) -> Any:
        gateway = self._gateway
        match call["call"]:
            case "hello":
                return {
                    "roster": gateway.roster(),
                    "connected": gateway.connected(),
                    "blobs": str(gateway.store.root),
                    "staging": str(self._staging),
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
            case "discard":
                for digest in call["digests"]:
                    gateway.discard(digest)
            case "traffic":
                return gateway.traffic()
        return None

    def _push(self, ring: LinkRing) -> None:
        self._send(encode(ring))

    def _send(self, value: Mapping[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._client is not None:
                self._client.sendall(json.dumps(value).encode() + b"\n")


class Link:
    """The ServerApp's end. `events` holds what the gateway rings; 'closed' when it is gone."""

    def __init__(self, path: Path) -> None:
        self.events: queue.SimpleQueue[LinkRing] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._blobs = Path()
        self.staging = Path()
        self._connected: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def hello(self) -> dict[str, int]:
        """Introduce ourselves; return the roster: site to Flower node id."""
        hello = self._call({"call": "hello"})
        self._blobs = Path(hello["blobs"])
        self.staging = Path(hello["staging"])
        self._connected = hello["connected"]
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
        """Hand a file of ours to the gateway as a blob; the file moves."""
        self._call({"call": "adopt", "path": str(path), "digest": ref.digest, "bytes": ref.bytes})

    def discard(self, digests: Iterable[str]) -> None:
        """Let the gateway forget blobs."""
        self._call({"call": "discard", "digests": sorted(set(digests))})

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
        self._socket.close()

    def _call(self, call: Mapping[str, Any]) -> Any:
        try:
            self._socket.sendall(json.dumps(call).encode() + b"\n")
            return self._answers.get(timeout=CALL_TIMEOUT_S)
        except (OSError, queue.Empty) as error:
            raise EnvironmentFailedError("the gateway no longer answers") from error

    def _read(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                value = json.loads(line)
                if "answer" in value:
                    self._answers.put(value["answer"])
                else:
                    self.events.put(LinkRing(**value))
        self.events.put(LinkRing(event="closed"))


def _check_same_user(client: socket.socket) -> None:
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid != os.getuid():
        client.close()
        raise IdentityError("the link is for processes of the coordinator's own user")
