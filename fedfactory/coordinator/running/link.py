"""The Unix socket between gateway and ServerApp: the gateway owns blobs, the ServerApp the run.

One socket a run. JSON lines. The ServerApp calls (hello, restore, offer, ring, adopt, claim,
discard, traffic) and is answered in order; it also beats, so that a frozen one is found. The
gateway pushes rings: a reply to pull, a site that came, went or left for good, a stop.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.gateway.blobs import blob_path
from fedfactory.coordinator.unix_socket import connect, hang_up

log = logging.getLogger("fedfactory.link")

RingName = Literal["reply", "site_connected", "site_lost", "site_left", "stop", "closed"]

# A gateway that died closes the socket, which ends a call at once. The bound is for one that is
# frozen; a claim may wait for the disk to take gigabytes.
CALL_TIMEOUT_S: Final = 300.0
BEAT_S: Final = 2.0


class LinkClosedError(EnvironmentFailedError):
    """The gateway is gone: the run's process ends without a word, and goes on when it is back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRing:
    """What the gateway tells the ServerApp; a field is empty where it means nothing.

    `message` is the id of the Flower message whose reply is there, whole. `at` (Unix seconds) is
    when a stop was asked for: told again to the next ServerApp it is the same stop. `code` (of
    REFUSALS) says why a site left.
    """

    event: RingName
    site: str = ""
    message: str = ""
    reason: str = ""
    code: str = ""
    after_round: bool = False
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What the gateway answers to `hello`: which of the run's sites have their doorbell open.

    Later changes arrive as rings.
    """

    connected: tuple[str, ...]


class Link:
    """The ServerApp's end. `tell` hears what the gateway rings, in order; 'closed' when it is gone.

    `tell` is called on a thread of the link's own. Every call raises LinkClosedError when the
    gateway is gone, EnvironmentFailedError when it could not do it.
    """

    def __init__(self, path: Path, tell: Callable[[LinkRing], object]) -> None:
        self._tell = tell
        self._answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._calling = threading.Lock()
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._blobs = Path()
        self._socket = connect(path)
        self._threads = [
            threading.Thread(target=work, name=f"link-{work.__name__}", daemon=True)
            for work in (self._read, self._beat)
        ]
        for thread in self._threads:
            thread.start()

    def hello(self) -> Greeting:
        """Introduce ourselves by our pid; what was asked of the run before follows as rings."""
        hello = self._call({"call": "hello", "pid": os.getpid()})
        self._blobs = Path(hello["blobs"])
        for ring in hello["told"]:
            self._tell(LinkRing(**ring))
        return Greeting(connected=tuple(hello["connected"]))

    def roster(self) -> dict[str, int]:
        """Return the Flower node ids of the run's enrolled sites, as they are now."""
        return dict(self._call({"call": "roster"}))

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies."""
        return blob_path(self._blobs, digest)

    def restore(self, claims: Iterable[tuple[str, str]], own: Iterable[str]) -> None:
        """Hold again what an earlier ServerApp of the run held: sites' uploads, and our own.

        `claims` are pairs of site and digest. Blobs of the run that are not named are given up.
        """
        pairs = [list(claim) for claim in sorted(set(claims))]
        self._call({"call": "restore", "claims": pairs, "own": sorted(set(own))})

    def offer(self, offers: Iterable[tuple[str, str]]) -> None:
        """Let sites download: pairs of site and digest."""
        self._call({"call": "offer", "offers": [list(offer) for offer in offers]})

    def ring(self, sites: Iterable[str]) -> None:
        """Ring the sites' doorbells."""
        self._call({"call": "ring", "sites": list(sites)})

    def adopt(self, path: Path, ref: BlobRef) -> None:
        """Let the gateway serve a file of ours (a hard link: same file system)."""
        self._call({"call": "adopt", "path": str(path), "digest": ref.digest, "bytes": ref.bytes})

    def claim(self, site: str, digest: str) -> bool:
        """Keep what a site uploaded, durably, until it is discarded; False if it sent no such."""
        return bool(self._call({"call": "claim", "site": site, "digest": digest}))

    def discard(self, digests: Iterable[str]) -> None:
        """Give up one hold on a blob each time it is named: a site's upload before our own."""
        self._call({"call": "discard", "digests": sorted(digests)})

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes down to and up from each of the run's sites since the gateway started."""
        return dict(self._call({"call": "traffic"}))

    def close(self) -> None:
        """Hang up."""
        self._over.set()
        hang_up(self._socket)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _call(self, call: Mapping[str, Any]) -> Any:
        with self._calling:  # answers come in the order of the calls
            try:
                self._send(call)
                answer = self._answers.get(timeout=CALL_TIMEOUT_S)
            except (OSError, queue.Empty) as error:
                hang_up(self._socket)  # a late answer would be taken for the next call's
                raise LinkClosedError from error
        if answer.get("gone"):
            raise LinkClosedError
        if "error" in answer:
            raise EnvironmentFailedError(f"the gateway could not {call['call']}: {answer['error']}")
        return answer["answer"]

    def _send(self, line: Mapping[str, Any]) -> None:
        with self._writing:
            self._socket.sendall(json.dumps(line).encode() + b"\n")

    def _beat(self) -> None:
        with contextlib.suppress(OSError):
            while not self._over.wait(BEAT_S):
                self._send({"call": "beat"})

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as lines:
            for line in lines:
                value = json.loads(line)
                if "event" in value:
                    self._tell(LinkRing(**value))
                else:
                    self._answers.put(value)
        self._over.set()
        hang_up(self._socket)
        self._tell(LinkRing(event="closed"))
        self._answers.put({"gone": True})
