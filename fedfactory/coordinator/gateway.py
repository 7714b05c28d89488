"""The one public port: mutual TLS, a tunnel for Fleet calls, arrays both ways, a doorbell.

The caller's site is read from its certificate at every call. Blocking IO in a thread per open call
(docs/adr/0002): a waiting doorbell costs a parked thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NoReturn

import grpc

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    FedfactoryError,
    IdentityError,
    IntegrityError,
    ProtocolError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.blobs import BlobStore
from fedfactory.coordinator.tunnel import Call, Node, PushTracker, check_call
from fedfactory.identity.enrolment import Identity
from fedfactory.identity.roles import Role, peer_of
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.pieces import PIECE_BYTES, BlobReference, Bytes
from fedfactory.wire.rpc.service import CLOCK, handlers
from fedfactory.wire.tls import SERVER_OPTIONS, server_credentials

MAX_CALLS: Final = 1024
# A site needs a doorbell, a transfer, a heartbeat and a call; more is a fault, or an attack.
MAX_CALLS_PER_SITE: Final = 16
HTTP_OK: Final = 200
STOP_GRACE_S: Final = 0.2
Forward = Callable[[str, bytes, str, bytes, bytes], tuple[int, bytes]]
Context = grpc.ServicerContext
Doorbell = queue.SimpleQueue[bool]


class Gateway:
    """Serves the sites. Callbacks tell the link of whole replies and of sites that come and go.

    `forward(method, public_key, timestamp, signature, body)` posts one Fleet call to SuperLink and
    returns HTTP status and body. `on_reply` is called with the id of the message that was answered.
    Every method may be called from any thread.
    """

    def __init__(self, identity: Identity, store: BlobStore, forward: Forward) -> None:
        self.store = store
        self.on_reply: Callable[[str], None] = _nobody
        self.on_connect: Callable[[str], None] = _nobody
        self.on_disconnect: Callable[[str], None] = _nobody
        self._forward = forward
        self._max_upload_bytes = 0
        self._lock = threading.Lock()
        self._nodes: dict[str, Node] = {}
        self._doorbells: dict[str, Doorbell] = {}
        self._uploads: dict[str, Context] = {}
        self._open_calls: dict[str, int] = defaultdict(int)
        self._offered: dict[str, set[str]] = defaultdict(set)
        self._traffic: dict[str, dict[str, int]] = defaultdict(lambda: {"down": 0, "up": 0})
        self._pushes = PushTracker()
        self._server = grpc.server(
            ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="gateway"),
            handlers=[handlers(self)],
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._credentials = server_credentials(identity)

    # ---- for the coordinator ---------------------------------------------------------------

    def start(self, host: str, port: int = 0) -> int:
        """Listen; return the port (0 asks for a free one).

        Raises:
            EnvironmentFailedError: the address cannot be bound.
        """
        try:
            bound = self._server.add_secure_port(f"{host}:{port}", self._credentials)
        except RuntimeError as error:
            raise EnvironmentFailedError(
                f"the gateway cannot listen on {host}:{port}: is the port taken?",
                diagnostic=str(error),
            ) from error
        self._server.start()
        return int(bound)

    def stop(self) -> None:
        """Hang up."""
        with self._lock:
            for bell in self._doorbells.values():
                bell.put(False)
        self._server.stop(grace=STOP_GRACE_S).wait()

    def limit_uploads(self, max_bytes: int) -> None:
        """Set how long an update of the run may be; before, none is taken."""
        self._max_upload_bytes = max_bytes

    def admit(self, site: str, node_id: int, public_key: bytes) -> None:
        """Let a site in, as the node it was registered as; `public_key` is its node key (PEM)."""
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
        """Tell a site that there may be a message; a ring still unheard is not repeated."""
        with self._lock:
            bell = self._doorbells.get(site)
            if bell is not None and bell.empty():
                bell.put(True)

    def discard(self, digest: str) -> None:
        """Give up a blob; when nobody else holds it, it can no longer be downloaded."""
        if self.store.discard(digest):
            with self._lock:
                for offered in self._offered.values():
                    offered.discard(digest)

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes of payload down to and up from each site: arrays and Fleet calls."""
        with self._lock:
            return {site: dict(counts) for site, counts in sorted(self._traffic.items())}

    # ---- for the sites ---------------------------------------------------------------------

    def tunnel(self, request: pb.TunnelRequest, context: Context) -> pb.TunnelReply:
        """Pass one Fleet call to SuperLink, once it is known to be the caller's own."""
        node = self._caller(context)
        call = Call(
            method=_method_name(request.method),
            public_key=request.public_key,
            timestamp=request.timestamp,
            signature=request.signature,
            body=request.body,
        )
        try:
            check_call(node, call)
        except FedfactoryError as error:
            _abort(context, error)
        status, answer = self._forward(
            call.method, call.public_key, call.timestamp, call.signature, call.body
        )
        self._count(node.site, down=len(answer), up=len(call.body))
        if status == HTTP_OK:
            with self._lock:
                answered = self._pushes.completes(node.site, call, answer)
            if answered:
                self.on_reply(answered)
        return pb.TunnelReply(status=status, body=answer)

    def download(self, request: pb.DownloadRequest, context: Context) -> Iterator[bytes]:
        """Stream a blob that was offered to the caller, from an offset."""
        site = self._caller(context).site
        with self._lock:
            offered = request.digest in self._offered[site]
        try:
            file = self.store.path(request.digest).open("rb", 0) if offered else None
        except FileNotFoundError:
            file = None
        if file is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such array set was offered to this site")
        with file:
            file.seek(request.offset)
            while data := file.read(PIECE_BYTES):
                self._count(site, down=len(data))
                yield data

    def upload(self, parts: Iterator[BlobReference | Bytes], context: Context) -> pb.UploadReceipt:
        """Store what the caller sends, once its length and digest are verified.

        The latest upload of a site counts: one that hangs on a dead connection gives way.
        """
        site = self._caller(context).site
        try:
            ref = self._announced(next(parts, None))
            with self._lock:
                older = self._uploads.get(site)
                self._uploads[site] = context
            if older is not None:
                older.cancel()  # type: ignore[no-untyped-call]
            self.store.receive(site, ref, self._pieces(site, parts))
        except FedfactoryError as error:
            _abort(context, error)
        finally:
            with self._lock:
                if self._uploads.get(site) is context:
                    del self._uploads[site]
        return pb.UploadReceipt(digest=ref.digest)

    def listen(self, request: pb.ListenRequest, context: Context) -> Iterator[pb.Ring]:
        """Ring once at once, then whenever there may be a message; the latest stream counts."""
        del request
        site = self._caller(context).site
        bell: Doorbell = queue.SimpleQueue()
        if not context.add_callback(lambda: bell.put(False)):
            return  # the caller has hung up already
        with self._lock:
            older = self._doorbells.get(site)
            self._doorbells[site] = bell
        if older is not None:
            older.put(False)
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

    # ---- within ----------------------------------------------------------------------------

    def _caller(self, context: Context) -> Node:
        """Return the calling site's node; count the call as one of its open ones."""
        try:
            peer = peer_of(context.auth_context())
        except IdentityError as error:
            _abort(context, error)
        context.set_trailing_metadata(((CLOCK, f"{time.time():.3f}"),))
        with self._lock:
            node = self._nodes.get(peer.name) if peer.role is Role.SITE else None
            crowded = self._open_calls[peer.name] >= MAX_CALLS_PER_SITE
            if node is not None and not crowded:
                self._open_calls[peer.name] += 1
        if node is None:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "this is no admitted site")
        if crowded:
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"a site may have {MAX_CALLS_PER_SITE} calls open at once",
            )
        if not context.add_callback(lambda: self._left(peer.name)):
            self._left(peer.name)
        return node

    def _left(self, site: str) -> None:
        with self._lock:
            self._open_calls[site] -= 1

    def _announced(self, first: BlobReference | Bytes | None) -> BlobRef:
        if not isinstance(first, BlobReference):
            raise ProtocolError("an upload begins with its reference")
        ref = BlobRef(digest=first.digest, bytes=first.bytes)
        if ref.bytes > self._max_upload_bytes:
            raise ProtocolError(
                f"an update of this run may be {self._max_upload_bytes} bytes long, not {ref.bytes}"
            )
        return ref

    def _pieces(self, site: str, parts: Iterator[BlobReference | Bytes]) -> Iterator[Bytes]:
        for part in parts:
            if isinstance(part, BlobReference):
                raise ProtocolError("an upload has one reference, and it comes first")
            self._count(site, up=len(part))
            yield part

    def _count(self, site: str, *, down: int = 0, up: int = 0) -> None:
        with self._lock:
            self._traffic[site]["down"] += down
            self._traffic[site]["up"] += up


def _abort(context: Context, error: FedfactoryError) -> NoReturn:
    code = grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, IdentityError):
        code = grpc.StatusCode.PERMISSION_DENIED
    elif isinstance(error, IntegrityError):
        code = grpc.StatusCode.DATA_LOSS
    context.abort(code, error.public_message)


def _nobody(what: str) -> None:
    """Nobody listens yet."""


def _method_name(number: int) -> str:
    try:
        return str(pb.FleetMethod.Name(number))
    except ValueError:
        return ""
