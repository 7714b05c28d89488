"""Flower's Grid of a run's process: its messages wait in the daemon's engine, replies come here."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedfactory.coordinator.flower_seam import from_bytes, to_bytes
from fedfactory.coordinator.running.link import Greeting, Link, Replied


class RunGrid(Grid):
    """The Grid over a run's link. `keep` is for the link's thread, the rest for the run's.

    `nodes` maps the run's sites to Flower's node ids.
    """

    def __init__(self) -> None:
        self.nodes: Mapping[str, int] = {}
        self._link: Link | None = None
        self._run: Any = None
        self._changed = threading.Condition()
        self._replies: dict[str, bytes] = {}

    def open(self, link: Link, greeting: Greeting) -> None:
        """Send by this link from now on."""
        self._link, self.nodes = link, greeting.nodes

    def keep(self, reply: Replied) -> None:
        """Keep a reply until it is pulled."""
        with self._changed:
            self._replies[reply.message] = reply.flower
            self._changed.notify_all()

    def set_run(self, run: Any) -> None:
        """Set the run's information, as Flower has it."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run's information, as Flower has it."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; see Flower's Message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the node ids of all sites of the run."""
        return list(self.nodes.values())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; return their ids, an empty one for what Flower did not take."""
        assert self._link is not None, "open comes first"
        return [sent or "" for sent in self._link.push(to_bytes(message) for message in messages)]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are there; each is given once."""
        with self._changed:
            found = [self._replies.pop(one) for one in message_ids if one in self._replies]
        return [from_bytes(reply) for reply in found]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Send messages; return the replies that come within `timeout` seconds (None: all)."""
        missing = {sent for sent in self.push_messages(messages) if sent}
        end = None if timeout is None else time.monotonic() + timeout
        found: list[Message] = []

        def here() -> set[str]:
            return missing & self._replies.keys()

        while missing:
            with self._changed:
                came = self._changed.wait_for(here, None if end is None else end - time.monotonic())
            if not came:
                break
            found += self.pull_messages(came)
            missing -= came
        return found
