"""The site's daemon: one outbound connection, orders in, answers out.

It sleeps until the gateway's doorbell rings, polls slowly in between, and reconnects with jittered
back-off. What an order means is decided in pipeline.py, who works on it in dispatch.py; this file
keeps the connection.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.durable_file import write_durably
from fedfactory.identity.enrolment import (
    load_identity,
    load_node_key,
    request_identity,
    wait_for_certificate,
)
from fedfactory.identity.roles import Role
from site_agents.assembly import build_pipeline
from site_agents.blob_cache import BlobCache
from site_agents.books import Books
from site_agents.config import AgentConfig
from site_agents.dispatch import Dispatcher
from site_agents.executors.executor import Executor
from site_agents.flower_seam import HEARTBEAT_S, FleetNode, FleetUnavailableError
from site_agents.gateway_client import GatewayClient
from site_agents.notify import notify
from site_agents.pipeline import Transfer
from site_agents.status import StatusBoard
from site_agents.watch import Watch

log = logging.getLogger("site_agents.agent")

POLL_S: Final = 30.0
CERTIFICATE_TIMEOUT_S: Final = 30 * 24 * 3600.0
FIRST_BACKOFF_S: Final = 0.1
BACKOFF_GROWTH: Final = 1.5
LONGEST_BACKOFF_S: Final = 30.0
NODE_ID_FILE: Final = "node-id"


@contextmanager
def connection(config: AgentConfig) -> Iterator[tuple[GatewayClient, FleetNode]]:
    """Yield the site's way to the gateway, and its node there, not yet online.

    Raises:
        IdentityError: the site's certificate is missing, or not valid now.
    """
    identity = config.home / "identity"
    with ExitStack() as closing:
        gateway = GatewayClient(config.gateway_address, load_identity(identity))
        closing.callback(gateway.close)
        node = FleetNode(gateway.tunnel, load_node_key(identity))
        closing.callback(node.close)
        yield gateway, node


def come_online(config: AgentConfig, node: FleetNode) -> None:
    """Activate the node, under the id that it had before if SuperLink still counts it as online.

    Raises:
        FedfactoryError: the gateway or SuperLink does not take the call.
    """
    remembered = config.home / NODE_ID_FILE
    with suppress(OSError, ValueError):  # none yet, or damaged: then as one that was never here
        node.resume(int(remembered.read_text()))
    node_id = node.activate()
    try:
        write_durably(remembered, str(node_id))
    except OSError as error:
        # Without it, one that is killed waits until SuperLink no longer counts it as online.
        log.warning("%s cannot be written: %s", remembered, error.strerror)


def transfer_of(config: AgentConfig, gateway: GatewayClient) -> Transfer:
    """Return the ways of arrays in and out."""
    models = BlobCache(config.home / "spool" / "models", gateway)
    return Transfer(fetch=models.fetch, send=gateway.upload)


class Agent:
    """One site's agent. `run` returns once it has drained, or was stopped.

    With `linger_s` it drains by itself once it had nothing in hand for so many seconds, and a lost
    connection is an error.
    """

    def __init__(
        self, config: AgentConfig, executor: Executor, books: Books, linger_s: float | None = None
    ) -> None:
        self._config = config
        self._executor = executor
        self._books = books
        self._linger_s = linger_s
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._rung = threading.Event()

    def drain(self) -> None:
        """Finish the orders under way and take no more; safe from a signal handler."""
        self._draining.set()
        self._rung.set()

    def stop(self) -> None:
        """End, also in the middle of an order; safe from a signal handler."""
        self._stopped.set()
        self.drain()

    def run(self) -> None:
        """Connect and serve.

        Raises:
            IdentityError: no certificate came, or it is not valid now.
            FedfactoryError: with `linger_s`, the gateway or SuperLink is away.
        """
        board = StatusBoard(self._config.home)
        identity = self._config.home / "identity"
        request_identity(identity, Role.SITE, self._config.site, node_key=True)
        board.connection("waiting for a certificate", str(identity))
        if not (identity / "certificate.pem").exists():
            log.info(
                "waits for certificate.pem: %s is for the consortium", identity / "request.json"
            )
        patience_s = CERTIFICATE_TIMEOUT_S if self._linger_s is None else 0.0
        if not wait_for_certificate(identity, patience_s, self._draining):
            board.connection("stopped")
            return
        with connection(self._config) as (gateway, node):
            pipeline = build_pipeline(
                self._config, self._books, self._executor, transfer_of(self._config, gateway)
            )
            dispatcher = Dispatcher(
                answer=pipeline.answer, send=node.answer, board=board, changed=self._rung.set
            )
            watch = Watch(
                self._config.home,
                self._executor,
                draining=self._draining,
                decided=lambda: self._take_up(dispatcher),
            )
            watch.start()
            try:
                self._serve(gateway, node, dispatcher, board, watch)
            finally:
                notify("STOPPING=1")
                watch.close()
                board.connection("stopped")

    def _serve(
        self,
        gateway: GatewayClient,
        node: FleetNode,
        dispatcher: Dispatcher,
        board: StatusBoard,
        watch: Watch,
    ) -> None:
        backoff_s, said = FIRST_BACKOFF_S, ""
        while not self._is_done(dispatcher):
            watch.moves()
            lost = threading.Event()
            try:
                come_online(self._config, node)
                _beside(self._listen, gateway, lost)
                _beside(self._beat, node, lost)
                log.info("connected to %s", self._config.gateway_address)
                board.connection("connected", self._config.gateway_address)
                backoff_s, said = FIRST_BACKOFF_S, ""
                self._attend(node, dispatcher, lost, watch)
            except FedfactoryError as error:
                reason = f"{error} {error.diagnostic or ''}".rstrip()
                if reason != said:
                    log.warning("not connected, and tries on: %s", reason)
                said = reason
                board.connection("connecting", str(error))
                if self._linger_s is not None and not dispatcher.is_working:
                    raise
            lost.set()
            if self._draining.is_set() and not dispatcher.is_working:
                break  # a reply that is left is in the ledger: asked again, it is sent again
            # Jitter keeps the sites from coming back all at once.
            waited = self._stopped if self._draining.is_set() else self._draining
            waited.wait(random.uniform(0.5, 1.0) * backoff_s)  # noqa: S311
            backoff_s = min(BACKOFF_GROWTH * backoff_s, LONGEST_BACKOFF_S)
        try:
            node.deactivate()
        except FedfactoryError:
            log.info("could not say goodbye: SuperLink is away")

    def _attend(
        self, node: FleetNode, dispatcher: Dispatcher, lost: threading.Event, watch: Watch
    ) -> None:
        """Take orders and send replies until the connection is lost or nothing is left to do."""
        busy_at = time.monotonic()
        while not (lost.is_set() or self._is_done(dispatcher)):
            watch.moves()
            self._rung.clear()
            dispatcher.send_unsent()
            while dispatcher.has_room and not self._draining.is_set():
                incoming = node.pull()
                if incoming is None:
                    break
                dispatcher.submit(incoming)
            if not dispatcher.is_idle:
                busy_at = time.monotonic()
            if self._linger_s is not None and time.monotonic() - busy_at >= self._linger_s:
                self.drain()
            if not self._is_done(dispatcher):
                self._rung.wait(POLL_S if self._linger_s is None else self._linger_s)

    def _take_up(self, dispatcher: Dispatcher) -> None:
        dispatcher.ask_again()
        self._rung.set()

    def _is_done(self, dispatcher: Dispatcher) -> bool:
        return self._stopped.is_set() or (self._draining.is_set() and dispatcher.is_idle)

    def _listen(self, gateway: GatewayClient, lost: threading.Event) -> None:
        """Turn the gateway's rings into wake-ups; the end of the stream is the end of a session."""
        try:
            for _ in gateway.listen():
                if lost.is_set():
                    return
                self._rung.set()
        except FedfactoryError as error:
            if not self._draining.is_set():  # else it is we who hung up
                log.warning("the doorbell fell silent: %s", error)
        self._lose(lost)

    def _beat(self, node: FleetNode, lost: threading.Event) -> None:
        while not lost.wait(HEARTBEAT_S):
            try:
                if node.heartbeat():
                    continue
                log.warning("SuperLink no longer knows this node")
            except FleetUnavailableError as error:
                log.warning("heartbeat failed: %s", error.diagnostic)
            except FedfactoryError as error:
                log.warning("heartbeat failed: %s", error)
            self._lose(lost)

    def _lose(self, lost: threading.Event) -> None:
        lost.set()
        self._rung.set()


def _beside(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()
