"""The site's one outbound connection: tunnel, arrays both ways, doorbell.

Arrays go from disk to disk in pieces: memory never follows their size.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import grpc

from fedfactory.contracts.errors import (
    EnvironmentFailedError,
    FedfactoryError,
    IdentityError,
    IntegrityError,
    ProtocolError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.identity.enrolment import Identity
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.pieces import PIECE_BYTES, BlobReference
from fedfactory.wire.rpc.service import GatewayCalls
from fedfactory.wire.tls import open_channel
from site_agents.arriving_blob import ArrivingBlob

log = logging.getLogger("site_agents.gateway_client")

TRIES: Final = 4
CALL_TIMEOUT_S: Final = 30.0
# A transfer that is slower than this is given up and tried again, so that nothing waits for ever.
SLOWEST_BYTES_PER_S: Final = 256 * 1024
FIRST_PAUSE_S: Final = 0.2
_REFUSED: Final = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
_FINAL: Final = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


class GatewayClient:
    """Calls on the gateway at 'host:port'. Usable from several threads.

    Raises, from every call:
        EnvironmentFailedError: the gateway cannot be reached or broke off; try again later.
        IdentityError: one side does not take the other for who it says it is.
        ProtocolError: the gateway does not take this call; trying again does not help.
    """

    def __init__(self, address: str, identity: Identity) -> None:
        self._channel = open_channel(address, identity)
        self._calls = GatewayCalls(self._channel)

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
            raise _translated(error) from error
        return reply.status, reply.body

    def download(self, ref: BlobRef, into: Path) -> None:
        """Fetch a blob to `into`, which appears whole or not at all.

        A cut transfer goes on where it was, also after a restart of the agent; altered bytes are
        thrown away and fetched again.

        Raises:
            IntegrityError: the bytes were altered each time.
        """
        cuts = alterations = 0
        with ArrivingBlob(into, ref) as blob:
            while True:
                before = blob.length
                try:
                    self._fetch_rest(blob)
                except EnvironmentFailedError as error:
                    cuts = 1 if blob.length - before >= PIECE_BYTES else cuts + 1
                    log.warning("download cut at %d bytes: %s", blob.length, error.diagnostic)
                    if cuts == TRIES:
                        raise
                    _pause(cuts)
                    continue
                if blob.commit():
                    return
                alterations += 1
                log.warning("the array set %s arrived altered", ref.digest)
                if alterations == TRIES:
                    raise IntegrityError(
                        f"the array set arrived altered {TRIES} times",
                        diagnostic=f"expected {ref.digest}, {ref.bytes} bytes",
                    )
                _pause(alterations)

    def _fetch_rest(self, blob: ArrivingBlob) -> None:
        request = pb.DownloadRequest(digest=blob.ref.digest, offset=blob.length)
        try:
            for data in self._calls.download(request, timeout=_patience_s(blob.ref)):
                if not blob.write(data):
                    return  # longer than announced: no need to hear the rest
        except grpc.RpcError as error:
            raise _translated(error) from error

    def upload(self, path: Path, ref: BlobRef) -> None:
        """Send a file as the blob `ref`, whole; tried again when the line breaks.

        Raises:
            IntegrityError: the file is not what `ref` says, or arrived altered each time.
        """
        if (length := path.stat().st_size) != ref.bytes:
            raise IntegrityError(f"{path.name} is {length} bytes long, expected {ref.bytes}")
        for attempt in range(1, TRIES + 1):
            try:
                self._calls.upload(_upload_parts(path, ref), timeout=_patience_s(ref))
            except grpc.RpcError as error:
                failure = _translated(error)
                log.warning("upload attempt %d: %s", attempt, failure.diagnostic)
                if attempt == TRIES or not isinstance(
                    failure, EnvironmentFailedError | IntegrityError
                ):
                    raise failure from error
                _pause(attempt)
            else:
                return

    def listen(self) -> Iterator[None]:
        """Yield whenever there may be a message; end or raise when the connection is lost.

        The first ring comes at once: it says that the gateway hears us.
        """
        try:
            for _ in self._calls.listen(pb.ListenRequest()):
                yield
        except grpc.RpcError as error:
            raise _translated(error) from error

    def close(self) -> None:
        """Hang up; calls under way end with an error."""
        self._channel.close()


def _upload_parts(path: Path, ref: BlobRef) -> Iterator[BlobReference | bytes]:
    yield BlobReference(digest=ref.digest, bytes=ref.bytes)
    with path.open("rb", 0) as file:
        while data := file.read(PIECE_BYTES):
            yield data


def _patience_s(ref: BlobRef) -> float:
    return CALL_TIMEOUT_S + ref.bytes / SLOWEST_BYTES_PER_S


def _pause(failures: int) -> None:
    """Back off, with jitter so that the sites do not come back all at once."""
    time.sleep(random.uniform(0.5, 1.0) * FIRST_PAUSE_S * 2.0**failures)  # noqa: S311


def _translated(error: grpc.RpcError) -> FedfactoryError:
    # Every error of a call is a grpc.Call too, which carries its status; the types do not say so.
    call = cast("grpc.Call", error)
    code, details = call.code(), str(call.details())
    diagnostic = f"{code.name}: {details}"
    if code in _REFUSED:
        return IdentityError("the gateway refuses this site", diagnostic=diagnostic)
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return IdentityError(
            "the gateway's certificate is not of the authority this site was enrolled with",
            diagnostic=diagnostic,
        )
    if code in _FINAL:
        return ProtocolError("the gateway does not take this call", diagnostic=diagnostic)
    if code is grpc.StatusCode.DATA_LOSS:
        return IntegrityError("the gateway received other bytes", diagnostic=diagnostic)
    return EnvironmentFailedError("the gateway cannot be reached", diagnostic=diagnostic)
