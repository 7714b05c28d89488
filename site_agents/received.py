"""What came from the coordinator, read once: an order, a run's end, or neither. Pure.

From here on an order goes with the key of its work: nothing reads its text or digests it again.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.plans import SignedOrder, SignedRunEnded
from fedfactory.wire.rpc.methods import MAX_ORDER_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedOrder:
    """An order as it came, and what it says its work is: believed by nobody until it is judged."""

    delivery: SignedOrder
    key: WorkKey
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """A message that has the form of no other. `finding` stays at the site."""

    finding: str


Received = ReceivedOrder | SignedRunEnded | Unreadable


def read_message(text: str) -> Received:
    """Read a message's text (JSON)."""
    if len(text) > MAX_ORDER_BYTES:
        return Unreadable(finding=f"{len(text)} characters are no order")
    try:
        delivery = from_json(SignedOrder, text)
        return ReceivedOrder(delivery=delivery, key=delivery.envelope.order.key(), text=text)
    except FedfactoryError as error:
        no_order = error
    try:
        return from_json(SignedRunEnded, text)
    except FedfactoryError:
        return Unreadable(finding=f"no order: {no_order}")
