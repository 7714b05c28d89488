"""The one public port: mutual TLS, a tunnel for Fleet calls, arrays both ways, a doorbell.

The caller's site is read from its certificate at every call. Blocking IO in a thread per open call
(docs/adr/0002): a waiting doorbell costs a parked thread.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc

from fedfactory.contracts.errors import IdentityError, IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.blobs import BlobStore
from fedfactory.coordinator.tunnel import Node, PushTracker, check_call
from fedfactory.identity.enrolment import Identity
from fedfactory.identity.roles import Role, peer_of
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc import gateway_pb2_grpc as rpc
from fedfactory.wire.tls import SERVER_OPTIONS, server_credentials

log = logging.getLogger("fedfactory.gateway")

PIECE_BYTES: Final = 2 * 1024 * 1024
MAX_CALLS: Final = 512
HTTP_OK: Final = 200
Forward = Callable[[str, bytes, str, bytes, bytes], tuple[int, bytes]]
Context = grpc.ServicerContext


class Gateway(rpc.GatewayServicer):
    """Serves the sites. Callbacks tell the link of replies and of sites that come and go."""

    def __init__(
        self, identity: Identity, store: BlobStore, forward: Forward
    ) -> None:
        self.store = store
        self.on_reply: Callable[[str], None] = _nobody
        self.on_connect: Callable[[str], None] = _nobody
        self.on_disconnect: Callable[[str], None] = _nobody
        self._forward = forward
        self._max_upload_bytes = 0
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._doorbells: dict[str, queue.SimpleQueue[bool]] = {}
        self._offered: dict[str, set[str]] = defaultdict(set)
        self._uploading: set[str] = set()
        self._traffic: dict[str, dict[str, int]] = defaultdict(lambda: {"down": 0, "up": 0})
        self._pushes = PushTracker()
        self._server = grpc.server(ThreadPoolExecutor(MAX_CALLS), options=SERVER_OPTIONS)
        self._credentials = server_credentials(identity)
        rpc.add_GatewayServicer_to_server(self, self._server)

    # ---- for the coordinator ---------------------------------------------------------------

    def start(self, host: str, port: int = 0) -> int:
        """Listen; return the port."""
        bound = self._server.add_secure_port(f"{host}:{port}", self._credentials)
        self._server.start()
        return int(bound)

    def stop(self) -> None:
        """Hang up."""
        with self._lock:
            for bell in self._doorbells.values():
                bell.put(False)
        self._server.stop(grace=0.2).wait()

    def limit_uploads(self, max_bytes: int) -> None:
        """Set how long an update of the run may be; before, none is taken."""
        self._max_upload_bytes = max_bytes

    def admit(self, site: str, node_id: int, public_key: bytes) -> None:
        """Let a site in, as the node it was registered as."""
        with self._lock:
            self._nodes[site] = Node(site=site, node_id=node_id, public_key=public_key)

    def roster(self) -> dict[str, int]:
        """Node ids of the admitted sites."""
        with self._lock:
            return {site: node.node_id for site, node in self._nodes.items()}

    def connected(self) -> list[str]:
        """Sites whose doorbell is open."""
        with self._lock:
            return sorted(self._doorbells)

    def offer(self, site: str, digest: str) -> None:
        """Let a site download a blob."""
        with self._lock:
            self._offered[site].add(digest)

    def ring(self, site: str) -> None:
        """Tell a site that there may be a message."""
        with self._lock:
            if bell := self._doorbells.get(site):
                bell.put(True)

    def discard(self, digest: str) -> None:
        """Forget a blob, and who might download it."""
        with self._lock:
            for offered in self._offered.values():
                offered.discard(digest)
        self.store.discard(digest)

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes down to and up from each site."""
        with self._lock:
            return {site: dict(counts) for site, counts in sorted(self._traffic.items())}

    # ---- for the sites ---------------------------------------------------------------------

    def Tunnel(self, request: pb.TunnelRequest, context: Context) -> pb.TunnelReply:  # noqa: N802
        """Pass one Fleet call to SuperLink, once it is known to be the caller's own."""
        node = self._caller(context)
        method = _method_name(request.method)
        try:
            check_call(node, method, request.public_key, request.body)
        except IdentityError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, error.public_message)
        except ProtocolError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.public_message)
        status, answer = self._forward(
            method, request.public_key, request.timestamp, request.signature, request.body
        )
        self._count(node.site, down=len(answer), up=len(request.body))
        if status == HTTP_OK:
            with self._lock:
                answered = self._pushes.completes(method, request.body, answer)
            if answered:
                self.on_reply(answered)
        return pb.TunnelReply(status=status, body=answer)

    def Download(  # noqa: N802
        self, request: pb.DownloadRequest, context: Context
    ) -> Iterator[pb.Piece]:
        """Stream a blob that was offered to the caller, from an offset."""
        site = self._caller(context).site
        with self._lock:
            offered = request.digest in self._offered[site]
        if not offered or not self.store.has(request.digest):
            context.abort(grpc.StatusCode.NOT_FOUND, "no such array set was offered to this site")
        with self.store.path(request.digest).open("rb") as file:
            file.seek(request.offset)
            while data := file.read(PIECE_BYTES):
                self._count(site, down=len(data))
                yield pb.Piece(data=data)

    def Upload(  # noqa: N802
        self, request_iterator: Iterator[pb.UploadPiece], context: Context
    ) -> pb.UploadReceipt:
        """Store what the caller sends, once its length and digest are verified."""
        site = self._caller(context).site
        ref = self._announced(next(request_iterator, None), context)
        with self._lock:
            busy = site in self._uploading
            self._uploading.add(site)
        if busy:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "one upload at a time")
        try:
            self.store.receive(ref, self._pieces(site, request_iterator))
        except IntegrityError as error:
            context.abort(grpc.StatusCode.DATA_LOSS, error.public_message)
        finally:
            with self._lock:
                self._uploading.discard(site)
        return pb.UploadReceipt(digest=ref.digest)

    def Listen(self, request: pb.ListenRequest, context: Context) -> Iterator[pb.Ring]:  # noqa: N802
        """Ring once at once, then whenever there may be a message; the latest stream counts."""
        del request
        site = self._caller(context).site
        bell: queue.SimpleQueue[bool] = queue.SimpleQueue()
        with self._lock:
            if older := self._doorbells.get(site):
                older.put(False)
            self._doorbells[site] = bell
        context.add_callback(lambda: bell.put(False))
        self.on_connect(site)
        try:
            yield pb.Ring()
            while bell.get():
                yield pb.Ring()
        finally:
            with self._lock:
                gone = self._doorbells.get(site) is bell
                if gone:
                    del self._doorbells[site]
            if gone:
                self.on_disconnect(site)

    def _caller(self, context: Context) -> Node:
        try:
            peer = peer_of(context.auth_context())
        except IdentityError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, error.public_message)
        with self._lock:
            node = self._nodes.get(peer.name) if peer.role is Role.SITE else None
        if node is None:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this is no admitted site")
            raise AssertionError
        return node

    def _announced(self, first: pb.UploadPiece | None, context: Context) -> BlobRef:
        if first is None or first.WhichOneof("part") != "reference":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an upload begins with its reference")
            raise AssertionError
        try:
            ref = BlobRef(digest=first.reference.digest, bytes=first.reference.bytes)
        except ProtocolError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.public_message)
            raise AssertionError from error
        if ref.bytes > self._max_upload_bytes:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"an update of this run may be {self._max_upload_bytes} bytes long",
            )
        return ref

    def _pieces(self, site: str, requests: Iterator[pb.UploadPiece]) -> Iterator[bytes]:
        for request in requests:
            self._count(site, up=len(request.data))
            yield request.data

    def _count(self, site: str, *, down: int = 0, up: int = 0) -> None:
        with self._lock:
            self._traffic[site]["down"] += down
            self._traffic[site]["up"] += up


def _nobody(what: str) -> None:
    """Nobody listens yet."""


def _method_name(number: Any) -> str:
    try:
        return str(pb.FleetMethod.Name(number))
    except ValueError:
        return ""
