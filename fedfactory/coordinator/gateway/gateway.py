"""The one public port: mutual TLS, orders and their replies, arrays both ways, doorbells.

front_door.py judges each call; here is what the calls of sites do. Enrolment and operations are
others' (the registrar's and the desk's). Blocking IO in a thread per open call (docs/adr/0002): a
waiting doorbell costs a parked thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

import grpc

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError, ProtocolError
from fedfactory.contracts.model import BlobRef, check_digest
from fedfactory.contracts.questions import Answer, SignedQuery
from fedfactory.coordinator.gateway.blob_calls import BlobCalls, Traffic
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.doorbells import Doorbells, Questions
from fedfactory.coordinator.gateway.front_door import Behaviour, FrontDoor, Skewed, Standing
from fedfactory.coordinator.gateway.health import Health
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.coordinator.gateway.mail import Mail, Mailbox
from fedfactory.coordinator.gateway.offers import Offers
from fedfactory.coordinator.gateway.open_calls import OpenCall
from fedfactory.identity.enrolment import Identity
from fedfactory.identity.roles import Peer
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import ENROLMENT, GATEWAY, HEALTH, MAX_ORDER_BYTES, OPERATIONS
from fedfactory.wire.rpc.service import EnrolmentService, OperationsService, handlers
from fedfactory.wire.tls import SERVER_OPTIONS, server_credentials

MAX_CALLS: Final = 1024
STOP_GRACE_S: Final = 0.2


class Listener(Protocol):
    """Hears what happens at the gateway, from any of its threads; must not wait."""

    def came(self, site: str) -> None:
        """A site's doorbell is open; said again when a new stream replaces it."""

    def went(self, site: str) -> None:
        """A site's doorbell is gone."""


class Gateway:
    """Serves the sites, and by `registrar` and `desk` the others. Usable from any thread.

    `identity` is asked at every handshake, so that a renewed certificate is used at once.
    `standing(peer, facts)` raises IdentityError if the registry does
    not let the holder of that certificate call. `revocations()` returns those of operators (JSON),
    oldest first, which every site is told when it connects.
    """

    def __init__(
        self,
        *,
        identity: Callable[[], Identity],
        store: BlobStore,
        standing: Standing,
        revocations: Callable[[], Sequence[str]],
        desk: OperationsService,
        registrar: EnrolmentService,
        limits: GatewayLimits,
    ) -> None:
        self.store = store
        self._revocations = revocations
        self._lock = threading.Lock()
        self._bells = Doorbells()
        self._offers = Offers()
        self._traffic = Traffic()
        self._blobs = BlobCalls(store, self._offers, self._traffic, limits.max_model_bytes)
        self._mail = Mail()
        self._questions = Questions()
        self._listeners: tuple[Listener, ...] = ()
        self._health = Health()
        self._door = FrontDoor(standing, limits, self._behaviours(desk, registrar))
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="gateway")
        self._server = grpc.server(
            self._threads,
            handlers=handlers(self._door.serve),
            options=SERVER_OPTIONS,
            maximum_concurrent_rpcs=MAX_CALLS,
        )
        self._credentials = server_credentials(identity)

    def _behaviours(
        self, desk: OperationsService, registrar: EnrolmentService
    ) -> dict[str, Behaviour]:
        """What each method does, by its path."""

        def asks(work: Callable[..., object]) -> Behaviour:
            return lambda call, wanted: work(call.peer, wanted)

        def certifies(work: Callable[..., object]) -> Behaviour:
            return lambda call, wanted: work(call.peer, call.facts, wanted, call.version)

        return {
            f"/{GATEWAY}/FetchOrder": self._fetch,
            f"/{GATEWAY}/SendReply": self._reply,
            f"/{GATEWAY}/Download": self._blobs.download,
            f"/{GATEWAY}/Arrived": self._blobs.arrived,
            f"/{GATEWAY}/Upload": self._blobs.upload,
            f"/{GATEWAY}/Listen": self._listen,
            f"/{GATEWAY}/Answer": self._answer,
            f"/{ENROLMENT}/Enrol": certifies(registrar.enrol),
            f"/{ENROLMENT}/Renew": certifies(registrar.renew),
            f"/{OPERATIONS}/Submit": asks(desk.submit),
            f"/{OPERATIONS}/ListRuns": asks(desk.list_runs),
            f"/{OPERATIONS}/Watch": asks(desk.watch),
            f"/{OPERATIONS}/Stop": asks(desk.stop),
            f"/{OPERATIONS}/Resume": asks(desk.resume),
            f"/{OPERATIONS}/Logs": asks(desk.logs),
            f"/{OPERATIONS}/FindModel": asks(desk.find_model),
            f"/{OPERATIONS}/Invite": asks(desk.invite),
            f"/{OPERATIONS}/ListMembers": asks(desk.list_members),
            f"/{OPERATIONS}/Revoke": asks(desk.revoke),
            f"/{HEALTH}/Check": self._health.check,
            f"/{HEALTH}/Watch": self._health.watch,
        }

    # ---- life ------------------------------------------------------------------------------

    def start(self, host: str, port: int = 0) -> int:
        """Listen; return the port (0 asks for a free one).

        Raises:
            EnvironmentFailedError: the address cannot be bound.
        """
        name = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_secure_port(f"{name}:{port}", self._credentials)
        except RuntimeError as error:
            raise EnvironmentFailedError(
                f"the gateway cannot listen on {name}:{port}: is the port taken?",
                diagnostic=str(error),
            ) from error
        self._server.start()
        self._door.calls.start()
        return int(bound)

    def stop(self) -> None:
        """Hang up."""
        self._health.stop()
        self._bells.hang_up_all()
        self._server.stop(grace=STOP_GRACE_S).wait()
        self._door.calls.stop()
        self._threads.shutdown(wait=False)

    def subscribe(self, listener: Listener) -> None:
        """Tell a listener what happens, until it is unsubscribed."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def unsubscribe(self, listener: Listener) -> None:
        """Tell it no more."""
        with self._lock:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

    # ---- members ---------------------------------------------------------------------------

    def connected(self) -> list[str]:
        """Sites whose doorbell is open."""
        return self._bells.sites()

    def skewed(self) -> dict[str, Skewed]:
        """Sites that call, and are refused for their version."""
        return self._door.skewed()

    def cut(self, peer: Peer) -> None:
        """End every open call of a member's at once; new ones are the registry's to refuse."""
        self._door.calls.cut(peer, IdentityError("the coordinator has cut this member off"))

    def tell_revocation(self, revocation: str) -> int:
        """Tell all connected sites of an operator's revocation (JSON); return how many."""
        return self._bells.revoke(revocation.encode())

    def ring(self, site: str) -> None:
        """Tell a site that there may be a message; one that is away looks when it comes."""
        bell = self._bells.find(site)
        if bell is not None:
            bell.ring()

    def ask(self, site: str, question: SignedQuery, timeout_s: float) -> Answer | None:
        """Ask a site; None if it is not connected, goes, or gives no readable answer in time."""
        bell = self._bells.find(site)
        return None if bell is None else self._questions.ask(bell, site, question, timeout_s)

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes of payload down to and up from each site: arrays, orders and replies."""
        return self._traffic.counts()

    # ---- runs ------------------------------------------------------------------------------

    def open_run(self, run_id: str, sites: Iterable[str], max_upload_bytes: int) -> None:
        """Serve a run: its sites may send updates of so many bytes at most."""
        self._offers.open_run(run_id, sites, max_upload_bytes)

    def close_run(self, run_id: str) -> None:
        """Serve a run no more; what it holds stays (see BlobStore.forget)."""
        self._offers.close_run(run_id)

    def open_mail(self, run_id: str, box: Mailbox) -> None:
        """Let a run's messages be fetched and answered."""
        self._mail.open(run_id, box)

    def close_mail(self, run_id: str, box: Mailbox) -> None:
        """Let them be no more, unless another box of the run's has taken the place."""
        self._mail.close(run_id, box)

    def offer(self, run_id: str, site: str, digest: str) -> None:
        """Let a site of an open run download a blob."""
        self._offers.offer(run_id, site, digest)

    def discard(self, run_id: str, digest: str) -> None:
        """Give up one hold of a run on a blob; with its last one the run's offers of it end."""
        if self.store.discard(run_id, digest):
            self._offers.withdraw(run_id, digest)

    def lend(self, peer: Peer, path: Path, ref: BlobRef) -> None:
        """Let a member download the file at `path` as the blob `ref`; the latest loans count."""
        self._offers.lend(peer.uri, ref.digest, path)

    # ---- what sites call -------------------------------------------------------------------

    def _fetch(self, call: OpenCall, request: pb.FetchRequest) -> pb.FetchedOrder:
        """Give a site what waits for it."""
        del request
        found = self._mail.fetch(call.peer.name)
        if found is None:
            return pb.FetchedOrder()
        text = found.text.encode()
        self._traffic.count(call.peer, down=len(text))
        return pb.FetchedOrder(message_id=found.message_id, text=text, more=found.more)

    def _reply(self, call: OpenCall, request: pb.SiteReply) -> pb.ReplyReceipt:
        """Take a site's reply to a message that it was given; its text is for the run to read."""
        if (length := len(request.text)) > MAX_ORDER_BYTES:
            raise ProtocolError(f"a reply may be {MAX_ORDER_BYTES} bytes, not {length}")
        try:
            text = request.text.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("a reply is text in UTF-8") from error
        digest = check_digest(request.digest) if request.digest else None
        self._traffic.count(call.peer, up=len(request.text))
        awaited = self._mail.reply(call.peer.name, request.message_id, text, digest)
        return pb.ReplyReceipt(awaited=awaited)

    def _listen(self, call: OpenCall, request: pb.ListenRequest) -> Iterator[pb.Ring]:
        """Ring once at once, then whenever there may be a message; the latest stream counts."""
        del request
        site = call.peer.name
        bell = self._bells.open(site)
        for revocation in self._revocations():  # once the bell hears of those that are just made
            bell.revoke(revocation.encode())
        call.wakes_by(bell.close)
        self._tell(lambda listener: listener.came(site))
        try:
            yield from bell.rings()
            if call.ended_by is not None:
                raise call.ended_by
        finally:
            if self._bells.remove(site, bell):
                self._questions.give_up(site)
                self._tell(lambda listener: listener.went(site))

    def _answer(self, call: OpenCall, request: pb.SiteAnswer) -> pb.AnswerReceipt:
        """Take the answer to a question."""
        self._questions.answer(call.peer.name, request.question_id, request.answer)
        return pb.AnswerReceipt()

    # ---- within ----------------------------------------------------------------------------

    def _tell(self, say: Callable[[Listener], None]) -> None:
        with self._lock:
            listeners = self._listeners
        for listener in listeners:
            say(listener)
