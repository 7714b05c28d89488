"""Arrays to and from members: what each may download and upload, and how much that was."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator

from fedfactory.contracts.errors import EnvironmentFailedError, ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.front_door import NotOfferedError
from fedfactory.coordinator.gateway.offers import Offers
from fedfactory.coordinator.gateway.open_calls import OpenCall
from fedfactory.identity.roles import Peer, Role
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.pieces import PIECE_BYTES, BlobReference, Bytes


class Traffic:
    """Bytes of payload down to and up from each site. Usable from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = defaultdict(lambda: {"down": 0, "up": 0})

    def count(self, peer: Peer, *, down: int = 0, up: int = 0) -> None:
        """Count what a site moved; others are not counted."""
        if peer.role is Role.SITE:
            with self._lock:
                self._counts[peer.name]["down"] += down
                self._counts[peer.name]["up"] += up

    def counts(self) -> dict[str, dict[str, int]]:
        """Return site -> {down, up}."""
        with self._lock:
            return {site: dict(counts) for site, counts in sorted(self._counts.items())}


class BlobCalls:
    """The gateway's methods Download, Arrived and Upload."""

    def __init__(
        self, store: BlobStore, offers: Offers, traffic: Traffic, max_model_bytes: int
    ) -> None:
        self._store = store
        self._offers = offers
        self._traffic = traffic
        self._max_model_bytes = max_model_bytes
        self._lock = threading.Lock()
        self._uploads: dict[Peer, OpenCall] = {}

    def download(self, call: OpenCall, request: pb.DownloadRequest) -> Iterator[bytes]:
        """Stream a blob that was offered or lent to the caller, from an offset."""
        path = self._offers.lent(call.peer.uri, request.digest)
        is_site = call.peer.role is Role.SITE
        if path is None and is_site and self._offers.is_offered(call.peer.name, request.digest):
            path = self._store.path(request.digest)
        try:
            file = path.open("rb", 0) if path is not None else None
        except FileNotFoundError:
            file = None
        if file is None:
            raise NotOfferedError("no such array set was offered to this caller")
        with file:
            file.seek(min(request.offset, os.fstat(file.fileno()).st_size))
            call.measure()
            while data := file.read(PIECE_BYTES):
                call.moved(len(data))
                self._traffic.count(call.peer, down=len(data))
                yield data

    def arrived(self, call: OpenCall, request: BlobReference) -> pb.ArrivedBytes:
        """Say how much of a blob has come from this caller."""
        return pb.ArrivedBytes(offset=self._store.arrived(call.peer, _reference(request)))

    def upload(self, call: OpenCall, parts: Iterator[BlobReference | Bytes]) -> pb.UploadReceipt:
        """Store what the caller sends, once its length and digest are verified.

        The latest upload of a caller counts: one that hangs on a dead connection gives way.
        """
        first = next(parts, None)
        if not isinstance(first, BlobReference):
            raise ProtocolError("an upload begins with its reference")
        ref = _reference(first)
        self._check_length(call.peer, ref)
        with self._lock:
            older = self._uploads.get(call.peer)
            self._uploads[call.peer] = call
        if older is not None:
            older.end(EnvironmentFailedError("a later upload takes this one's place"))
        try:
            call.measure()
            self._store.receive(call.peer, ref, first.offset, self._pieces(call, parts))
        finally:
            with self._lock:
                if self._uploads.get(call.peer) is call:
                    del self._uploads[call.peer]
        return pb.UploadReceipt(digest=ref.digest)

    def _check_length(self, peer: Peer, ref: BlobRef) -> None:
        if peer.role is Role.SITE:
            limit = self._offers.max_upload_bytes(peer.name)
            if limit is None:
                raise EnvironmentFailedError("no run of this site's is open now: try again")
        else:
            limit = self._max_model_bytes
        if ref.bytes > limit:
            raise ProtocolError(f"an upload may be {limit} bytes long here, not {ref.bytes}")

    def _pieces(self, call: OpenCall, parts: Iterator[BlobReference | Bytes]) -> Iterator[Bytes]:
        for part in parts:
            if isinstance(part, BlobReference):
                raise ProtocolError("an upload has one reference, and it comes first")
            call.moved(len(part))
            self._traffic.count(call.peer, up=len(part))
            yield part


def _reference(message: BlobReference) -> BlobRef:
    return BlobRef(digest=message.digest, bytes=message.bytes)
