"""The site's line to the gateway, under the identity that lies in its home now.

A new certificate, renewed or enrolled anew, opens a new connection; what is under way on the old
one ends there. Whoever uses the line sees one line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.questions import Answer
from fedfactory.durable_file import write_durably
from fedfactory.identity.enrolment import Identity, load_identity, load_node_key
from fedfactory.identity.lifetime import ends_at
from fedfactory.wire.renewal import Renewal
from site_agents.config import AgentConfig
from site_agents.enrolling import IDENTITY
from site_agents.flower_seam import FleetNode, Incoming
from site_agents.gateway_client import GatewayClient, Rung

log = logging.getLogger("site_agents.line")

NODE_ID_FILE: Final = "node-id"


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


class _Client:
    """A connection, and how many calls are under way on it."""

    def __init__(self, address: str, identity: Identity) -> None:
        self.calls = GatewayClient(address, identity)
        self.identity = identity
        self.under_way = 0
        self.retired = False


class Line:
    """The line of the site that `config` is of. Calls are for any thread, the rest for one.

    Raises, from every call, what GatewayClient raises.
    """

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._folder = config.home / IDENTITY
        self._lock = threading.Lock()
        self._client: _Client | None = None
        self._replaced: list[_Client] = []
        self._uploading = threading.Lock()
        self._node: FleetNode | None = None
        self._node_key = b""

    # ---- the identity in use -------------------------------------------------------------------

    def refresh(self) -> bool:
        """Take the identity that lies in the home now; whether it is another than before.

        Raises:
            IdentityError: none lies there, or it is not valid now; says what to do.
        """
        identity = load_identity(self._folder)
        if self._client is not None and identity == self._client.identity:
            return False
        fresh = _Client(self._config.gateway_address, identity)
        with self._lock:
            if self._client is not None:
                self._replaced.append(self._client)
            self._client = fresh
        key = load_node_key(self._folder)
        if key != self._node_key:
            if self._node is not None:
                self._node.close()
            self._node, self._node_key = FleetNode(self.tunnel, key), key
        return True

    @property
    def ends_at(self) -> float:
        """When the certificate in use ends, in Unix seconds."""
        return ends_at(self._open().identity)

    def renewal_due_in_s(self) -> float:
        """Return in how many seconds to renew; 0 or less: now. Raises IdentityError."""
        return Renewal(self._folder).due_in_s()

    def renew(self) -> None:
        """Have the certificate renewed; `refresh` takes it.

        Raises:
            IdentityError: the coordinator does not, or what it gave cannot be trusted.
        """
        with self._borrowed() as calls:
            Renewal(self._folder).renew(calls.renew)

    # ---- calls ---------------------------------------------------------------------------------

    @property
    def node(self) -> FleetNode:
        """The site's node at SuperLink."""
        assert self._node is not None, "refresh opens the line"
        return self._node

    def come_online(self) -> None:
        """Activate the node; see come_online."""
        come_online(self._config, self.node)

    def go_offline(self) -> None:
        """Tell SuperLink that the node goes; nothing if it never came online. Raises as above."""
        if self._node is not None:
            self._node.deactivate()

    def tunnel(
        self, method: str, body: bytes, public_key: bytes, timestamp: str, signature: bytes
    ) -> tuple[int, bytes]:
        """See GatewayClient.tunnel."""
        with self._borrowed() as calls:
            return calls.tunnel(method, body, public_key, timestamp, signature)

    def download(self, ref: BlobRef, into: Path) -> None:
        """See GatewayClient.download."""
        with self._borrowed() as calls:
            calls.download(ref, into)

    def upload(self, path: Path, ref: BlobRef) -> None:
        """See GatewayClient.upload. One at a time: the gateway takes a caller's latest alone."""
        with self._uploading, self._borrowed() as calls:
            calls.upload(path, ref)

    def answer(self, question_id: str, answer: Answer) -> None:
        """See GatewayClient.answer."""
        with self._borrowed() as calls:
            calls.answer(question_id, answer)

    def send(self, incoming: Incoming, text: str) -> None:
        """Send the reply to a message."""
        self.node.answer(incoming, text)

    def listen(self) -> Iterator[Rung]:
        """See GatewayClient.listen; ends when another connection takes this one's place.

        That one is heard before this one hangs up: the site never seems to have gone.
        """
        client = self._open()
        try:
            for ring in client.calls.listen():
                self._retire_replaced()
                yield ring
        except FedfactoryError:
            if not client.retired:
                raise

    def close(self) -> None:
        """Hang up; calls under way end with an error."""
        with self._lock:
            clients = [*self._replaced, *([self._client] if self._client else [])]
        for client in clients:
            client.retired = True
            client.calls.close()
        if self._node is not None:
            self._node.close()

    # ---- within --------------------------------------------------------------------------------

    def _open(self) -> _Client:
        assert self._client is not None, "refresh opens the line"
        return self._client

    @contextmanager
    def _borrowed(self) -> Iterator[GatewayClient]:
        with self._lock:
            client = self._open()
            client.under_way += 1
        try:
            yield client.calls
        finally:
            with self._lock:
                client.under_way -= 1
                over = client.retired and not client.under_way
            if over:
                client.calls.close()

    def _retire_replaced(self) -> None:
        with self._lock:
            replaced, self._replaced = self._replaced, []
            for client in replaced:
                client.retired = True
            over = [client for client in replaced if not client.under_way]
        for client in over:
            client.calls.close()
