"""What a Flower strategy sees of the federation: who may take part in this phase, and no wire."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedfactory.contracts.errors import UsageError
from fedfactory.contracts.orders import WorkKind
from fedfactory.coordinator.aggregating.accumulator import AggregationError

# Flower's sample_nodes asks for the nodes once a second until there are enough, for ever.
_PAUSE_S: Final = 0.5
_MAX_PAUSES: Final = 3
_MAX_CALLS: Final = 10_000


class SiteGrid(Grid):
    """Presents the phase's sites, in the order of their names; refuses to send or receive.

    A strategy that keeps asking for more sites than there are gets AggregationError.
    """

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self._ids = [nodes[site] for site in sorted(nodes)]
        self._calls = 0
        self._pauses = 0
        self._asked_at = time.monotonic()

    def get_node_ids(self) -> list[int]:
        """Return the node ids of the phase's sites, sorted by site name."""
        now = time.monotonic()
        self._calls += 1
        self._pauses = self._pauses + 1 if now - self._asked_at >= _PAUSE_S else 0
        self._asked_at = now
        if self._pauses >= _MAX_PAUSES or self._calls > _MAX_CALLS:
            raise AggregationError(
                f"the strategy waits for more sites than the {len(self._ids)} there are"
            )
        return list(self._ids)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message; it is read for what it asks, and never sent itself."""
        return Message(
            content=content,
            message_type=message_type,
            dst_node_id=dst_node_id,
            group_id=group_id,
            ttl=ttl,
        )

    def set_run(self, run: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        self._refuse("set_run")

    @property
    def run(self) -> NoReturn:
        """Refused."""
        self._refuse("run")

    def push_messages(self, messages: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        self._refuse("push_messages")

    def pull_messages(self, message_ids: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        self._refuse("pull_messages")

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> NoReturn:  # noqa: ARG002
        """Refused."""
        self._refuse("send_and_receive")

    def _refuse(self, name: str) -> NoReturn:
        raise AggregationError(
            f"the strategy calls Grid.{name}; rounds are fedfactory's: a strategy returns its"
            " messages and is given the replies"
        )


def sites_needed(strategy: Strategy, kind: WorkKind) -> int:
    """Return how many sites the strategy waits for, as far as its fields (FedAvg's names) tell."""
    if getattr(strategy, f"fraction_{kind}", None) == 0.0:
        return 0
    fields = ("min_available_nodes", f"min_{kind}_nodes")
    found = (getattr(strategy, field, 0) for field in fields)
    return max(number for number in (0, *found) if isinstance(number, int))


def node_ids(sites: Iterable[str]) -> dict[str, int]:
    """Return the id by which strategies know each site: 63 bits of a hash of its name.

    The same in every run and after every restart, so that a strategy may remember sites by it.

    Raises:
        UsageError: two names share an id.
    """
    ids: dict[str, int] = {}
    names: dict[int, str] = {}
    for site in sorted(sites):
        digest = hashlib.sha256(f"fedfactory node {site}".encode()).digest()
        ids[site] = int.from_bytes(digest[:8], "big") >> 1
        if (other := names.setdefault(ids[site], site)) != site:
            raise UsageError(
                f"sites '{other}' and '{site}' have the same node id by chance; give one"
                " of them another name"
            )
    return ids
