"""What members upload: files under way, or whole and not yet claimed, each its uploader's alone.

An upload that was cut goes on where it was, also after a restart of the gateway: what lies there is
hashed once then. Of each member the latest few are kept, for a few days.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError, IntegrityError
from fedfactory.contracts.model import BlobRef, check_digest
from fedfactory.identity.roles import Peer
from fedfactory.wire.rpc.arriving_blob import ArrivingBlob, Prefix

# An upload that nobody has claimed yet. A site answers one order at a time; the rest is leftovers.
KEPT_PER_PEER: Final = 4
KEPT_S: Final = 7 * 24 * 3600.0
TURN_S: Final = 20.0


class Arrivals:
    """The folder of uploads (0700, files 0600). Usable from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        self._known: dict[Path, Prefix] = {}
        self._busy: set[Path] = set()
        self._turns = threading.Condition()
        self.drop_old(time.time())

    def length(self, peer: Peer, ref: BlobRef) -> int:
        """Return how many of the blob's bytes have arrived from a member."""
        try:
            return min(self._path(peer, ref.digest).stat().st_size, ref.bytes)
        except FileNotFoundError:
            return 0

    def receive(
        self, peer: Peer, ref: BlobRef, offset: int, pieces: Iterable[bytes | memoryview]
    ) -> None:
        """Take a member's stream as the blob `ref` from `offset` on. A cut one may be gone on with.

        Raises:
            IntegrityError: `offset` is beyond what has arrived, or the stream was too short; or it
                was too long or of another digest, and nothing is kept.
            EnvironmentFailedError: an earlier upload of the member's has still not ended.
        """
        with self._turn(peer, ref.digest) as path:
            self._make_room(peer, path)
            with ArrivingBlob(path, ref, self._known.get(path)) as blob:
                if offset > blob.length:
                    raise IntegrityError(f"{blob.length} bytes have arrived, not {offset}")
                blob.go_on_from(offset)
                try:
                    _write(blob, pieces)
                finally:
                    self._known[path] = blob.prefix
                    if blob.length == 0 < ref.bytes:
                        self._drop(path)

    def take(
        self, peer: Peer, digest: str, into: Path, unless: Callable[[], bool] = lambda: False
    ) -> bool:
        """Move a whole upload to `into`, durably but for the name; False if there is none.

        `unless` is asked once nobody else takes or sends it: if it holds, an upload need not be
        there.
        """
        with self._turn(peer, digest) as path:
            taken_before = unless()
            if not self._is_whole(path, digest):
                return taken_before
            path.replace(into)
            self._known.pop(path, None)
            return True

    def find(self, peer: Peer, digest: str) -> Path | None:
        """Return where a whole upload lies, durably; None if there is none."""
        with self._turn(peer, digest) as path:
            return path if self._is_whole(path, digest) else None

    def drop_old(self, now: float) -> None:
        """Drop what has lain here for days. `now` in Unix seconds."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > KEPT_S:
                    self._drop(path)

    def _is_whole(self, path: Path, digest: str) -> bool:
        """See whether a file is the blob of that digest; if it is, have it on disk."""
        if not path.exists():
            return False
        ref = BlobRef(digest=digest, bytes=path.stat().st_size)
        with ArrivingBlob(path, ref, self._known.get(path)) as blob:
            self._known[path] = blob.prefix
            if blob.is_whole:
                blob.sync()
            return blob.is_whole

    def _path(self, peer: Peer, digest: str) -> Path:
        digits = check_digest(digest).removeprefix("sha256:")
        return self._folder / f"{_prefix(peer)}{digits}"

    def _make_room(self, peer: Peer, path: Path) -> None:
        mine = [p for p in self._folder.glob(f"{_prefix(peer)}*") if p != path]
        for old in sorted(mine, key=_modified_at)[: 1 - KEPT_PER_PEER]:
            self._drop(old)

    def _drop(self, path: Path) -> None:
        self._known.pop(path, None)
        path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _turn(self, peer: Peer, digest: str) -> Iterator[Path]:
        """One at a time for each file: a stream that was told to give way may still be ending."""
        path = self._path(peer, digest)
        with self._turns:
            if not self._turns.wait_for(lambda: path not in self._busy, TURN_S):
                raise EnvironmentFailedError("an earlier upload has not ended yet: try again")
            self._busy.add(path)
        try:
            yield path
        finally:
            with self._turns:
                self._busy.discard(path)
                self._turns.notify_all()


def _prefix(peer: Peer) -> str:
    return f"{peer.role}:{peer.name}:"  # a name holds no colon


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _write(blob: ArrivingBlob, pieces: Iterable[bytes | memoryview]) -> None:
    for piece in pieces:
        if not blob.write(piece):
            raise IntegrityError(f"more than the {blob.ref.bytes} bytes announced")
    if blob.length != blob.ref.bytes:
        # Kept: to gRPC a line that breaks may look like the stream's end.
        raise IntegrityError(f"{blob.length} bytes arrived of {blob.ref.bytes} announced")
    if not blob.is_whole:
        blob.start_over()
        raise IntegrityError("the bytes have another digest than announced")
