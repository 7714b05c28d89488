"""Everything private of Flower's that the coordinator uses. Contract tests pin it.

In the daemon: `Engine`, Flower's LinkState of one start of a run's process. In that process: its
identity as an app, and the bytes of its messages. Decides nothing. LinkState takes two seconds to
import, so it is imported where it is used.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD

if TYPE_CHECKING:
    from flwr.app import Message

log = logging.getLogger("fedfactory.link")

# Nodes are always online to Flower: whether a site is here the gateway knows by its doorbell.
LONGEST_RUN_S: Final = 10.0 * 365 * 24 * 3600
# Of each site so many answered messages are remembered, so that a reply sent twice is taken twice.
ANSWERED_KEPT: Final = 64
# Of each site so many messages are open: one whose line breaks again and again is asked each time.
OPEN_KEPT: Final = 64


def flower_environment(home: Path) -> dict[str, str]:
    """Environment that keeps Flower offline and quiet; to be set before it is imported."""
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


# ---- in a run's process ------------------------------------------------------------------------


def assume_app_identity(run: int = 1) -> None:
    """Let `Message(...)` be built in this process, as the ServerApp of Flower's run `run`."""
    from flwr.common.constant import SUPERLINK_NODE_ID
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, SUPERLINK_NODE_ID


def to_bytes(message: Message) -> bytes:
    """Return a message with its content in Flower's wire form."""
    from flwr.common.serde import message_to_proto

    return bytes(message_to_proto(message).SerializeToString())


def from_bytes(data: bytes) -> Message:
    """Return the message of `to_bytes`."""
    from flwr.common.serde import message_from_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage

    return message_from_proto(ProtoMessage.FromString(data))


# ---- in the daemon -----------------------------------------------------------------------------


def import_engine() -> None:
    """Import what `Engine` needs of Flower: two seconds of a processor.

    Only warnings of Flower and its database library are logged from then on: the rest is a line
    for each of their plug-ins and for each start of a run's process.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import flwr.server.superlink.linkstate
    import flwr.superlink.federation  # noqa: F401

    logging.getLogger("flwr").setLevel(logging.WARNING)  # the import sets it, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A message for a site: its id and its text. `more`: another waits behind it."""

    message_id: str
    text: str
    more: bool


@dataclass(slots=True)
class _Open:
    """A message that is not answered yet; `until` is when Flower drops it, in Unix seconds."""

    site: str
    message: Message
    text: str
    until: float
    fetched: bool = False
    in_hand: bool = False


class Engine:
    """Flower's LinkState for one start of a run's process: its nodes, its messages, the replies.

    Flower's run is created and never claimed: a claimed one fails without heartbeats. Usable from
    any thread. `nodes` maps each site to its node id.
    """

    def __init__(self, sites: Iterable[str]) -> None:
        from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
        from flwr.server.superlink.linkstate import LinkStateFactory
        from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
        from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
        from flwr.supercore.object_store import ObjectStoreFactory
        from flwr.superlink.federation import NoOpFederationManager

        objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        state = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), objects).state()
        assert isinstance(state, InMemoryLinkState)
        self._state = state
        self.run = state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        self.nodes: dict[str, int] = {}
        for site in sites:
            key = site.encode()
            node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, LONGEST_RUN_S)
            state.activate_node(node, LONGEST_RUN_S)
            self.nodes[site] = node
        self._sites = {node: site for site, node in self.nodes.items()}
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._of_site: dict[str, dict[str, None]] = {site: {} for site in self.nodes}
        self._waiting: dict[str, deque[str]] = {site: deque() for site in self.nodes}
        self._answered: dict[str, deque[str]] = {
            site: deque(maxlen=ANSWERED_KEPT) for site in self.nodes
        }

    def push(self, data: bytes) -> tuple[str, str] | None:
        """Take one message of the run's process; return its id and site, None if it is refused.

        Flower refuses messages to no node of its own; we, those that no site could take.
        """
        from fedfactory.wire.rpc.methods import MAX_ORDER_BYTES

        message = from_bytes(data)
        site = self._sites.get(message.metadata.dst_node_id)
        if site is None:
            return None
        text = str(message.content.config_records[MESSAGE_RECORD][MESSAGE_FIELD])
        if (length := len(text.encode())) > MAX_ORDER_BYTES:
            log.error("an order for %s is %d bytes, at most %d go", site, length, MAX_ORDER_BYTES)
            return None
        message_id = message.metadata.__dict__["_message_id"] = str(uuid4())
        until = message.metadata.created_at + message.metadata.ttl
        with self._lock:
            self._drop_expired(message.metadata.created_at)
            if self._state.store_message_ins(message) is None:
                return None
            self._make_room(site)
            self._open[message_id] = _Open(site, message, text, until)
            self._of_site[site][message_id] = None
            waiting = self._waiting[site]
            while waiting and waiting[0] not in self._open:  # of a site that is away for long
                waiting.popleft()
            waiting.append(message_id)
        return message_id, site

    def fetch(self, site: str) -> Fetched | None:
        """Return what waited longest for a site, as delivered; None if nothing waits.

        Flower's own look goes through all that is open: 5 ms at 1,000 messages. The index of what
        waits is ours, the check and the mark are Flower's.
        """
        from flwr.supercore.date import now

        with self._lock:
            waiting = self._waiting.get(site, ())
            while waiting:
                message_id = waiting.popleft()
                self._state._check_stored_messages({message_id})  # noqa: SLF001
                if message_id not in self._state.message_ins_store:
                    if message_id in self._open:
                        self._drop(message_id)
                    continue
                found = self._open[message_id]
                found.fetched = True
                found.message.metadata.delivered_at = now().isoformat()
                return Fetched(message_id=message_id, text=found.text, more=bool(waiting))
        return None

    def waits(self, site: str) -> bool:
        """Whether a message may wait for a site; it may have expired."""
        with self._lock:
            return bool(self._waiting.get(site))

    def begin_reply(self, site: str, message_id: str) -> bool | None:
        """Say whether a site's reply to a message is to be taken: then `reply` and `pull` follow.

        False: it was taken before. None: there is no such message (any more).

        Raises:
            IdentityError: the message did not go to this site.
            EnvironmentFailedError: another reply to it is being taken.
        """
        with self._lock:
            if message_id in self._answered.get(site, ()):
                return False
            found = self._open.get(message_id)
            if found is None:
                return None
            if found.site != site or not found.fetched:
                raise IdentityError("a reply answers a message that its sender was given")
            if found.in_hand:
                raise EnvironmentFailedError("another reply to the message is being taken")
            found.in_hand = True
            return True

    def postpone(self, message_id: str) -> None:
        """The reply that was begun could not be taken: the site may send it again."""
        with self._lock:
            if (found := self._open.get(message_id)) is not None:
                found.in_hand = False

    def reply(self, message_id: str, text: str) -> bool:
        """Store the reply to a message as Flower's; False if nobody waits for it any more."""
        from flwr.app import ConfigRecord, Message, RecordDict

        with self._lock:
            found = self._open[message_id]
            content = RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: text})})
            reply = Message(content, reply_to=found.message)
            reply.metadata.__dict__["_message_id"] = str(uuid4())
            if self._state.store_message_res(reply) is not None:
                return True
            self._drop(message_id)
            return False

    def pull(self, message_id: str) -> bytes | None:
        """Return the reply to a message in Flower's wire form, once; None if it is not there."""
        with self._lock:
            replies = self._state.get_message_res({message_id}, self.run)
            site = self._open[message_id].site
            self._drop(message_id)
            (reply,) = replies or (None,)
            if reply is None or reply.has_error():
                return None
            self._answered[site].append(message_id)
        return to_bytes(reply)

    def _drop_expired(self, now: float) -> None:
        """Let go of the oldest messages whose time is over; Flower keeps them until somebody asks.

        In the order in which they were pushed: one that lives longer holds up later ones a while.
        """
        while self._open:
            message_id, oldest = next(iter(self._open.items()))
            if oldest.until > now or oldest.in_hand:
                return
            self._drop(message_id)

    def _make_room(self, site: str) -> None:
        """Let go of a site's oldest messages, if it has too many: the latest ask for the same."""
        mine, waiting = self._of_site[site], self._waiting[site]
        while len(mine) >= OPEN_KEPT:
            oldest = next(one for one in mine if not self._open[one].in_hand)
            if not self._open[oldest].fetched:
                waiting.remove(oldest)
            self._drop(oldest)

    def _drop(self, message_id: str) -> None:
        self._state.delete_messages({message_id})
        del self._of_site[self._open.pop(message_id).site][message_id]
