"""The site's one outbound connection: tunnel, arrays both ways, doorbell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.questions import Answer
from fedfactory.identity.enrolment import Identity
from fedfactory.wire.membership import Certified, RenewWanted
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.service import EnrolmentCalls, GatewayCalls
from fedfactory.wire.rpc.transfers import CALL_TIMEOUT_S, Transfers, translated
from fedfactory.wire.tls import open_channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """There may be a message: pull. With a `question` (JSON), answer it by `question_id`.

    `revocation` (JSON) tells of an operator's; None for none. So many messages wait as `messages`
    says; 0: pull until there is none.
    """

    messages: int
    question_id: str
    question: str | None
    revocation: str | None


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

    def tunnel(
        self, method: str, body: bytes, public_key: bytes, timestamp: str, signature: bytes
    ) -> tuple[int, bytes]:
        """Send one Fleet call; return SuperLink's HTTP status and body."""
        request = pb.TunnelRequest(
            method=method,
            body=body,
            public_key=public_key,
            timestamp=timestamp,
            signature=signature,
        )
        try:
            reply = self._calls.tunnel(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise translated(error) from error
        return reply.status, reply.body

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
                yield Rung(
                    messages=ring.messages,
                    question_id=ring.question_id,
                    question=text,
                    revocation=revocation,
                )
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
            return self._enrolment.renew(RenewWanted(csr=csr), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise translated(error) from error

    def close(self) -> None:
        """Hang up; calls under way end with an error."""
        self._channel.close()
