"""The site's line to the gateway, under the identity that lies in its home now.

A new certificate, renewed or enrolled anew, opens a new connection; what is under way on the old
one ends there. Whoever uses the line sees one line.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.questions import Answer
from fedfactory.identity.enrolment import Identity, load_identity
from fedfactory.identity.lifetime import ends_at
from fedfactory.wire.renewal import Renewal
from site_agents.config import AgentConfig
from site_agents.enrolling import IDENTITY
from site_agents.gateway_client import Fetched, GatewayClient, Rung

log = logging.getLogger("site_agents.line")


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

    def fetch(self) -> Fetched | None:
        """See GatewayClient.fetch."""
        with self._borrowed() as calls:
            return calls.fetch()

    def send(self, message_id: str, text: str, digest: str) -> bool:
        """See GatewayClient.send."""
        with self._borrowed() as calls:
            return calls.send(message_id, text, digest)

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
