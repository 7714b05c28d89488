"""Replies in: from a Flower message to an event, once its bytes are durable and its values checked.

Journals nothing and changes nothing of the run: a crash before the event is written loses the
claim, and the site sends its finished update again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from flwr.app import Message

from fedfactory.contracts.codec import from_json
from fedfactory.contracts.errors import FieldError, ProtocolError
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD, Order, WorkKey
from fedfactory.contracts.privacy import PrivacyStanding
from fedfactory.contracts.updates import Reply, Update
from fedfactory.coordinator.aggregating.aggregation import Unfit, verify_update
from fedfactory.coordinator.running.asking import Asking
from fedfactory.coordinator.running.link import Replied
from fedfactory.coordinator.running.run_parts import RunParts
from fedfactory.coordinator.running.update_checks import bound_of, false_number
from fedfactory.rounds.events import Event, ReplyAccepted, ReplyRefused
from fedfactory.wire.arrays import ArrayFile


class Taking:
    """Takes the replies to the orders that `asking` sent."""

    def __init__(self, parts: RunParts, asking: Asking) -> None:
        self._parts = parts
        self._asked, self._bases = asking.asked, asking.bases
        self._declared = parts.settings.plan.max_examples
        self._spec: ModelSpec | None = None

    def take(self, replies: Sequence[Replied]) -> list[Event]:
        """Return what these replies come to; another process's orders are nobody's any more."""
        claimed = {reply.message: reply.claimed for reply in replies}
        events: list[Event] = []
        for message in self._parts.grid.pull_messages(claimed):
            asked = message.metadata.reply_to_message_id
            claim = claimed[asked]
            order = self._asked.pop(asked, None)
            if order is not None:
                events.append(self._take(order, message, claim))
            elif claim is not None:
                self._parts.link.discard([claim])
        return events

    def _take(self, order: Order, message: Message, claim: str | None) -> Event:
        """Return what a reply comes to; an upload that does not count, or did, is given up."""
        claims = self._parts.life.claims
        held_before = (order.site, claim) in claims
        event = self._judge(order, message, claim)
        if claim is not None and (held_before or (order.site, claim) not in claims):
            self._parts.link.discard([claim])
        return event

    def _judge(
        self, order: Order, message: Message, claim: str | None
    ) -> ReplyAccepted | ReplyRefused:
        key = order.key()
        try:
            reply = from_json(
                Reply, str(message.content.config_records[MESSAGE_RECORD][MESSAGE_FIELD])
            )
        except FieldError as error:
            return _refused(key, "bad_reply", error.finding)
        except (ProtocolError, KeyError):
            # What it says is the site's text: not repeated.
            return _refused(key, "bad_reply", "")
        if reply.work != key:
            return _refused(key, "bad_reply", "it names other work than was asked for")
        if reply.anchor is not None:
            self._parts.anchors.keep(key.site, reply.anchor)
        if reply.refusal is not None:
            return _refused(key, reply.refusal.code, "", reply.standing)
        assert reply.update is not None
        if false := false_number(order, reply.update, self._declared.get(key.site)):
            return _refused(key, "bad_reply", false, reply.standing)
        return self._take_update(order, reply.update, claim, reply.standing)

    def _take_update(
        self, order: Order, update: Update, claim: str | None, standing: PrivacyStanding | None
    ) -> ReplyAccepted | ReplyRefused:
        key, norm_l2 = order.key(), None
        if update.payload is not None:
            digest = update.payload.blob.digest
            # Only what this very site sent counts: it may not name another's blob, nor the base.
            if claim != digest:
                return _refused(key, "missing_update", "", standing)
            found = self._verified(order, update, update.payload.blob)
            if isinstance(found, Unfit):
                return _refused(key, found.code, found.detail, standing)
            norm_l2 = found
            self._parts.life.claims.add((key.site, digest))
        return ReplyAccepted(at=time.time(), update=update, norm_l2=norm_l2, standing=standing)

    def _verified(self, order: Order, update: Update, blob: BlobRef) -> float | Unfit:
        path = self._parts.link.blob_path(blob.digest)
        if (length := path.stat().st_size) != blob.bytes:
            told = f"Update.payload.blob.bytes: the update is {length} bytes long, not {blob.bytes}"
            return Unfit(code="bad_update_form", detail=told)
        terms, base = self._parts.settings.plan.terms, self._bases[order.base.digest]
        return verify_update(path, self._model_spec(), bound_of(terms, order, base, update))

    def _model_spec(self) -> ModelSpec:
        """Return the model's tensors: the same in every round."""
        if self._spec is None:
            newest = self._parts.life.state.model
            assert newest is not None
            with ArrayFile(self._parts.checkpoints.path(newest)) as file:
                self._spec = file.spec
        return self._spec


def _refused(
    key: WorkKey, code: str, detail: str, standing: PrivacyStanding | None = None
) -> ReplyRefused:
    return ReplyRefused(
        at=time.time(),
        round=key.round,
        kind=key.kind,
        site=key.site,
        code=code,
        detail=detail,
        standing=standing,
    )
