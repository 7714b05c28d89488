"""The site's one outbound connection: orders in, replies out, arrays both ways, doorbell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.questions import Answer
from fedfactory.identity.enrolment import Identity
from fedfactory.wire.membership import Certified, RenewRequest
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import MAX_ORDER_BYTES
from fedfactory.wire.rpc.service import EnrolmentCalls, GatewayCalls
from fedfactory.wire.rpc.transfers import CALL_TIMEOUT_S, Transfers, translated
from fedfactory.wire.tls import open_channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """There may be a message: fetch it. With a `question` (JSON), answer it by `question_id`.

    `revocation` (JSON) is an operator's; None for none.
    """

    question_id: str
    question: str | None
    revocation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A message to this site: its JSON text, and the id by which it is answered.

    `more`: another one waits behind it.
    """

    message_id: str
    text: str
    more: bool


class GatewayClient:
    """Calls on the gateway at 'host:port'. Usable from several threads.

    Raises, from every call:
        EnvironmentFailedError: the gateway cannot be reached or broke off; try again later.
        IdentityError: one side does not take the other for who it says it is, or for a version that
            it works with; the sentence is in the message.
        ProtocolError: the gateway does not take this call; trying again does not help.
    """

    def __init__(self, address: str, identity: Identity) -> None:
        self._channel = open_channel(address, identity)
        self._calls = GatewayCalls(self._channel)
        self._enrolment = EnrolmentCalls(self._channel)
        self._transfers = Transfers(self._channel)

    def fetch(self) -> Fetched | None:
        """Take the message that waited longest for this site; None if none waits."""
        try:
            found = self._calls.fetch_order(pb.FetchRequest(), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise translated(error) from error
        if not found.message_id:
            return None
        text = found.text.decode("utf-8", "replace")
        return Fetched(message_id=found.message_id, text=text, more=found.more)

    def send(self, message_id: str, text: str, digest: str) -> bool:
        """Send the reply to a fetched message; return whether the coordinator awaited it.

        `digest` names the upload that the reply speaks of, "" for none. A reply that may have been
        lost is sent again with the same text. One of more than MAX_ORDER_BYTES is a ProtocolError:
        only names of the coordinator's own, which every answer repeats, can make it so long.
        """
        reply = pb.SiteReply(message_id=message_id, text=text.encode(), digest=digest)
        if len(reply.text) > MAX_ORDER_BYTES:
            raise ProtocolError(f"a reply may be {MAX_ORDER_BYTES} bytes, not {len(reply.text)}")
        try:
            return bool(self._calls.send_reply(reply, timeout=CALL_TIMEOUT_S).awaited)
        except grpc.RpcError as error:
            raise translated(error) from error

    def download(self, ref: BlobRef, into: Path) -> None:
        """Fetch a blob; see Transfers.download."""
        self._transfers.download(ref, into)

    def upload(self, path: Path, ref: BlobRef) -> None:
        """Send a file as the blob `ref`; see Transfers.upload."""
        self._transfers.upload(path, ref)

    def listen(self) -> Iterator[Rung]:
        """Yield whenever there may be a message; end or raise when the connection is lost.

        The first ring comes at once: it says that the gateway hears us.
        """
        try:
            for ring in self._calls.listen(pb.ListenRequest()):
                text = ring.question.decode("utf-8", "replace") if ring.question_id else None
                revocation = ring.revocation.decode("utf-8", "replace") or None
                yield Rung(question_id=ring.question_id, question=text, revocation=revocation)
        except grpc.RpcError as error:
            raise translated(error) from error

    def answer(self, question_id: str, answer: Answer) -> None:
        """Answer a question that came with a ring."""
        request = pb.SiteAnswer(question_id=question_id, answer=to_json(answer).encode())
        try:
            self._calls.answer(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise translated(error) from error

    def renew(self, csr: str) -> Certified:
        """Have the key of the certificate in use certified anew; `csr` (PEM) is of that key."""
        try:
            return self._enrolment.renew(RenewRequest(csr=csr), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise translated(error) from error

    def close(self) -> None:
        """Hang up; calls under way end with an error."""
        self._channel.close()
