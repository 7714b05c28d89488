"""Orders out: from what the machine wants asked to signed messages in Flower's hands."""

from __future__ import annotations

import shutil
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD, Order
from fedfactory.contracts.plans import SignedOrder, SignedRunEnded
from fedfactory.contracts.update_norms import Base
from fedfactory.coordinator.aggregating.site_plan import SitePlan
from fedfactory.coordinator.running.run_parts import RunParts
from fedfactory.rounds.events import SendOrders
from fedfactory.wire.base_norm import read_base

# A reply on its way when the order ends still counts as late, and is told so; Flower would drop it.
TTL_MARGIN_S: Final = 60.0
# The first sites begin while the orders of others are still being signed.
SENT_AT_ONCE: Final = 16


class Asking:
    """Sends orders; `asked` are those of this process, by Flower's message id.

    `bases` are the facts of the models that they start from, kept for late answers.
    """

    def __init__(self, parts: RunParts) -> None:
        self.asked: dict[str, Order] = {}
        self.bases: dict[str, Base] = {}  # by digest
        self._until: dict[str, float] = {}  # time.monotonic() seconds: when Flower drops a message
        self._parts = parts
        self._adopted: set[str] = set()

    def send(self, command: SendOrders, plans: Mapping[str, SitePlan]) -> None:
        """Offer each site its base and push its order; its OrdersSent is in the journal.

        The order of a site that is away, or not enrolled yet, waits for it.
        """
        parts, rules = self._parts, self._parts.settings.plan.rules
        for plan in plans.values():
            self._serve(plan, command.model)
        orders = {
            site: parts.orders.order(command.round, command.kind, plan)
            for site, plan in plans.items()
        }
        parts.link.offer((site, order.base.digest) for site, order in orders.items())
        good_for = rules.deadline_s + rules.lateness_s
        expires_at = time.time() + good_for
        until = time.monotonic() + good_for + TTL_MARGIN_S
        for few in _batches(list(orders.items())):
            messages = [
                message(
                    parts.grid.nodes[site],
                    order.kind,
                    parts.orders.delivery(order, expires_at),
                    group=order.round,
                    ttl=good_for + TTL_MARGIN_S,
                )
                for site, order in few
            ]
            for (_, order), sent in zip(few, parts.grid.push_messages(messages), strict=True):
                if sent:  # "": Flower refused it; its log says why, and the deadline decides
                    self.asked[sent], self._until[sent] = order, until

    def _serve(self, plan: SitePlan, model: BlobRef) -> None:
        """Let the gateway serve a base: the shared model, or one of the strategy's own making."""
        if plan.base.digest in self._adopted:
            return
        checkpoints, link = self._parts.checkpoints, self._parts.link
        if plan.base.digest not in self.bases:
            path = checkpoints.path(model) if plan.base == model else plan.base_path
            self.bases[plan.base.digest] = read_base(path, self._parts.settings.plan.terms)
        if plan.base == model:
            link.adopt(checkpoints.path(model), model)
        else:
            path = checkpoints.workplace / plan.base.digest.removeprefix("sha256:")
            shutil.move(plan.base_path, path)  # perhaps from another file system
            link.adopt(path, plan.base)
            path.unlink()
        self._adopted.add(plan.base.digest)

    def forget(self, needed: Container[str]) -> list[str]:
        """Return the bases that no order needs any more, to be given up; each once.

        Forgets the orders whose messages Flower has dropped.
        """
        now = time.monotonic()
        for gone in [sent for sent, until in self._until.items() if until < now]:
            del self._until[gone]
            self.asked.pop(gone, None)
        spent = sorted(digest for digest in self._adopted if digest not in needed)
        self._adopted.difference_update(spent)
        return spent


def _batches(present: Sequence[tuple[str, Order]]) -> Iterator[Sequence[tuple[str, Order]]]:
    """Yield the orders few by few."""
    for first in range(0, len(present), SENT_AT_ONCE):
        yield present[first : first + SENT_AT_ONCE]


def message(
    node: int, kind: str, content: SignedOrder | SignedRunEnded, *, group: int, ttl: float
) -> Message:
    """Return the Flower message that carries `content` to a node; `ttl` in seconds."""
    return Message(
        RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: to_json(content)})}),
        dst_node_id=node,
        message_type=kind,
        group_id=str(group),
        ttl=ttl,
    )
