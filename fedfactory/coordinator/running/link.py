"""The socket between the daemon and a run's process: the daemon owns blobs, the process the run.

JSON lines. The process calls (hello, restore, offer, push, adopt, traffic) and is answered in
order; it gives up blobs (discard) and beats, so that a frozen one is found, without an answer. The
daemon pushes rings (a site that came, went or left for good, a stop) and replies, each with its
upload claimed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import queue
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.gateway.blobs import blob_path
from fedfactory.coordinator.unix_socket import hang_up
from fedfactory.durable_file import sync_folder

log = logging.getLogger("fedfactory.link")

RingName = Literal["site_connected", "site_lost", "site_left", "stop", "closed"]

# A daemon that died closes the socket, which ends a call at once. The bound is for one that is
# frozen; a call may wait for the disk, or for Flower's engine to be imported.
CALL_TIMEOUT_S: Final = 300.0
BEAT_S: Final = 2.0


class LinkClosedError(EnvironmentFailedError):
    """The daemon is gone: the run's process ends without a word, and goes on when it is back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRing:
    """What the daemon tells a run's process; a field is empty where it means nothing.

    `at` (Unix seconds) is when a stop was asked for: told again to the next process it is the same
    stop. `code` (of REFUSALS) says why a site left.
    """

    event: RingName
    site: str = ""
    reason: str = ""
    code: str = ""
    after_round: bool = False
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replied:
    """A reply that is there: to which message, Flower's bytes of it, and the upload claimed.

    `claimed` is the digest of the upload that came with it and is held for the run, None if none.
    """

    message: str
    flower: bytes
    claimed: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What the daemon answers to `hello`.

    `connected` are the run's sites whose doorbell is open; later changes arrive as rings. `run` is
    the id of Flower's run, `nodes` maps the run's sites to their node ids there.
    """

    connected: tuple[str, ...]
    run: int
    nodes: Mapping[str, int]


class Link:
    """The end of a run's process. `tell` hears rings and replies, in order; 'closed' at the end.

    `tell` is called on a thread of the link's own. Every call raises LinkClosedError when the
    daemon is gone, EnvironmentFailedError when it could not do it.
    """

    def __init__(self, daemon: socket.socket, tell: Callable[[LinkRing | Replied], object]) -> None:
        self._tell = tell
        self._answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._calling = threading.Lock()
        self._writing = threading.Lock()
        self._over = threading.Event()
        self._blobs = Path()
        self._socket = daemon
        self._threads = [
            threading.Thread(target=work, name=f"link-{work.__name__}", daemon=True)
            for work in (self._read, self._beat)
        ]
        for thread in self._threads:
            thread.start()

    def hello(self) -> Greeting:
        """Say that we are here; what was asked of the run before is heard first."""
        hello = self._call({"call": "hello"})
        self._blobs = Path(hello["blobs"])
        return Greeting(
            connected=tuple(hello["connected"]), run=int(hello["run"]), nodes=dict(hello["nodes"])
        )

    def push(self, messages: Iterable[bytes]) -> list[str | None]:
        """Let messages (Flower's bytes) wait for their sites, and ring; ids, None if refused."""
        encoded = [base64.b64encode(message).decode() for message in messages]
        return list(self._call({"call": "push", "messages": encoded}))

    def blob_path(self, digest: str) -> Path:
        """Where a blob lies."""
        return blob_path(self._blobs, digest)

    def sync_blobs(self) -> None:
        """Make the names of all claimed uploads durable; their bytes are. Raises OSError."""
        sync_folder(self._blobs)

    def restore(self, claims: Iterable[tuple[str, str]], own: Iterable[str]) -> None:
        """Hold again what an earlier process of the run held: sites' uploads, and our own.

        `claims` are pairs of site and digest. Blobs of the run that are not named are given up.
        """
        pairs = [list(claim) for claim in sorted(set(claims))]
        self._call({"call": "restore", "claims": pairs, "own": sorted(set(own))})

    def offer(self, offers: Iterable[tuple[str, str]]) -> None:
        """Let sites download: pairs of site and digest."""
        self._call({"call": "offer", "offers": [list(offer) for offer in offers]})

    def adopt(self, path: Path, ref: BlobRef) -> None:
        """Let the daemon serve a file of ours (a hard link: same file system)."""
        self._call({"call": "adopt", "path": str(path), "digest": ref.digest, "bytes": ref.bytes})

    def discard(self, digests: Iterable[str]) -> None:
        """Give up one hold on a blob each time it is named: a site's upload before our own.

        Nobody waits for it: deleting the updates of 200 sites takes a while.
        """
        try:
            self._send({"call": "discard", "digests": sorted(digests)})
        except OSError as error:
            raise LinkClosedError from error

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes down to and up from each of the run's sites since the run has its place."""
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
            raise EnvironmentFailedError(f"the daemon could not {call['call']}: {answer['error']}")
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
                elif "reply" in value:
                    found = base64.b64decode(value["flower"])
                    claimed = value["claimed"]
                    self._tell(Replied(message=value["reply"], flower=found, claimed=claimed))
                else:
                    for ring in value.pop("first", ()):  # heard before hello returns
                        self._tell(LinkRing(**ring))
                    self._answers.put(value)
        self._over.set()
        hang_up(self._socket)
        self._tell(LinkRing(event="closed"))
        self._answers.put({"gone": True})
