"""Orders in hand: each is answered by a thread of its own, and its reply sent when there is a line.

What an order means is the pipeline's matter. Here is only who waits for what: a thread for its
worker, a finished order for a person, a reply for the connection to come back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import FedfactoryError, ProtocolError
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.plans import Anchor
from fedfactory.contracts.updates import Reply
from site_agents.approvals import Pending
from site_agents.gateway_client import Fetched
from site_agents.policy.facts import shown
from site_agents.received import Received, ReceivedOrder, read_message
from site_agents.status import StatusBoard
from site_agents.unauthorised import CODES

log = logging.getLogger("site_agents.dispatch")

# Orders that are worked on or wait; beyond it they stay with the coordinator.
MOST_IN_HAND: Final = 32
SEND_TRIES: Final = 5


@dataclass(slots=True)
class _Answer:
    """A reply on its way, as GatewayClient.send takes it. `tries` counts failed sendings."""

    message_id: str
    text: str
    digest: str
    tries: int = 0


class Dispatcher:
    """`answer` is the pipeline's, `send` GatewayClient's; `changed` wakes the agent."""

    def __init__(
        self,
        *,
        answer: Callable[[Received], Reply | Pending | Anchor | None],
        send: Callable[[str, str, str], bool],
        board: StatusBoard,
        changed: Callable[[], None],
    ) -> None:
        self._answer = answer
        self._send = send
        self._board = board
        self._changed = changed
        self._lock = threading.Lock()
        self._working = 0
        # An order may come again and again, each time the connection comes back: of a copy that
        # waits, the latest counts. By the key of the work, with the message's id.
        self._waiting: dict[WorkKey, tuple[str, ReceivedOrder]] = {}  # for a person
        self._later: dict[WorkKey, tuple[str, ReceivedOrder]] = {}  # for the copy worked on
        self._worked_on: set[WorkKey] = set()
        self._unsent: list[_Answer] = []

    @property
    def has_room(self) -> bool:
        """Whether one more order may be taken."""
        with self._lock:
            waiting = len(self._waiting) + len(self._later) + len(self._unsent)
            return self._working + waiting < MOST_IN_HAND

    @property
    def is_idle(self) -> bool:
        """Whether nothing is worked on and every reply is sent; orders may wait for a person."""
        with self._lock:
            return not self._working and not self._unsent

    @property
    def is_working(self) -> bool:
        """Whether an order is worked on."""
        with self._lock:
            return self._working > 0

    def submit(self, fetched: Fetched) -> None:
        """Begin to answer a message; returns at once."""
        self._begin(lambda: self._reply(fetched.message_id, read_message(fetched.text)))

    def ask_again(self) -> None:
        """Somebody decided something: take up the orders that wait for a person."""
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for message_id, order in waiting.values():
            self._begin(partial(self._reply, message_id, order))

    def send_unsent(self) -> None:
        """Send what a lost connection left behind. Raises what `send` raises."""
        while True:
            with self._lock:
                if not self._unsent:
                    return
                answer = self._unsent[0]
            try:
                self._deliver(answer)
            except FedfactoryError:
                answer.tries += 1
                if answer.tries >= SEND_TRIES:
                    # Whatever the reason: the coordinator asks again if it needs the reply.
                    log.warning("a reply could not be sent in %d sessions", SEND_TRIES)
                    self._drop(answer)
                raise
            self._drop(answer)

    def _deliver(self, answer: _Answer) -> None:
        """Send a reply; give up one that the gateway would never take.

        Raises:
            FedfactoryError: it was not sent, and may be sent again.
        """
        try:
            if not self._send(answer.message_id, answer.text, answer.digest):
                log.info("nobody waits for a reply any more: the coordinator asks again")
        except ProtocolError as error:
            log.warning("a reply is given up: %s", error)

    def _drop(self, answer: _Answer) -> None:
        with self._lock:
            self._unsent.remove(answer)

    def _begin(self, work: Callable[[], None]) -> None:
        with self._lock:
            self._working += 1
        # A thread that hangs must not keep a stopped agent alive: no pool, whose threads would.
        threading.Thread(target=self._work, args=(work,), name="order", daemon=True).start()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            # A fault of ours: the order stays unanswered, the agent lives on and its log says why.
            log.exception("an order could not be answered")
        with self._lock:
            self._working -= 1
        self._changed()

    def _reply(self, message_id: str, received: Received) -> None:
        if not isinstance(received, ReceivedOrder):
            self._reply_to(message_id, received)
            return
        key = received.key
        with self._lock:
            if key in self._worked_on:
                self._later[key] = message_id, received
                return
            self._worked_on.add(key)
        try:
            self._board.begins(key)
            self._reply_to(message_id, received)
        finally:
            with self._lock:
                self._worked_on.discard(key)
                later = self._later.pop(key, None)
            if later is not None:
                self._begin(partial(self._reply, *later))

    def _reply_to(self, message_id: str, received: Received) -> None:
        reply = self._answer(received)
        if isinstance(reply, Pending):
            assert isinstance(received, ReceivedOrder)
            with self._lock:
                self._waiting[received.key] = message_id, received
            self._board.waits(received.key)
            return
        if reply is None:
            return
        answer = _Answer(message_id, to_json(reply), _upload_of(reply))
        try:
            self._deliver(answer)
        except FedfactoryError as error:
            log.warning("a reply waits for the connection: %s", error)
            with self._lock:
                self._unsent.append(answer)
        if isinstance(reply, Reply):
            done, outcome = reply.work, reply.refusal.code if reply.refusal else "update"
            if outcome not in CODES:  # those are counted, in one line
                log.info(
                    "run %s round %d %s: %s", shown(done.run_id), done.round, done.kind, outcome
                )
            self._board.ends(done, outcome)


def _upload_of(reply: Reply | Anchor) -> str:
    """Return the digest of the upload that a reply speaks of; "" for none."""
    update = reply.update if isinstance(reply, Reply) else None
    return update.payload.blob.digest if update and update.payload else ""
