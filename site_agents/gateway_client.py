"""The site's one outbound connection: tunnel, arrays both ways, doorbell."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import grpc

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError, IntegrityError
from fedfactory.contracts.model import BlobRef
from fedfactory.identity.enrolment import Identity
from fedfactory.wire.arrays import file_pieces
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc import gateway_pb2_grpc as rpc
from fedfactory.wire.tls import open_channel

log = logging.getLogger("site_agents.gateway_client")

PIECE_BYTES: Final = 2 * 1024 * 1024
TRIES: Final = 4
CALL_TIMEOUT_S: Final = 30.0
_REFUSED: Final = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


class GatewayClient:
    """Calls on the gateway at 'host:port'.

    Raises, from every call:
        EnvironmentFailedError: the gateway cannot be reached or broke off; try again later.
        IdentityError: the gateway does not take us for who we say we are.
    """

    def __init__(self, address: str, identity: Identity) -> None:
        self._channel = open_channel(address, identity)
        self._stub = rpc.GatewayStub(self._channel)  # type: ignore[no-untyped-call]

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
            reply = self._stub.Tunnel(request, timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise _translated(error) from error
        return reply.status, reply.body

    def download(self, ref: BlobRef, into: Path) -> None:
        """Fetch a blob to `into`; a cut transfer goes on where it was, a wrong one starts anew.

        Raises:
            IntegrityError: the bytes were wrong each time.
        """
        partial = into.with_name(f".{into.name}.part")
        failure: Exception = IntegrityError("never tried")
        for attempt in range(TRIES):
            _pause(attempt)
            try:
                self._download_rest(ref, partial)
            except EnvironmentFailedError as error:
                log.warning("download attempt %d: %s", attempt + 1, error.diagnostic)
                failure = error
                continue
            if _digest_of(partial) == ref.digest:
                partial.replace(into)
                return
            partial.unlink()
            failure = IntegrityError("the array set arrived altered, several times")
        raise failure

    def _download_rest(self, ref: BlobRef, partial: Path) -> None:
        with partial.open("ab") as file:
            request = pb.DownloadRequest(digest=ref.digest, offset=file.tell())
            try:
                for piece in self._stub.Download(request):
                    file.write(piece.data)
                    if file.tell() > ref.bytes:
                        break
            except grpc.RpcError as error:
                raise _translated(error) from error
        if partial.stat().st_size < ref.bytes:
            raise EnvironmentFailedError(diagnostic="the stream ended early")

    def upload(self, path: Path, ref: BlobRef) -> None:
        """Send a file as the blob `ref`, whole; tried again when the line breaks."""
        failure: Exception = EnvironmentFailedError()
        for attempt in range(TRIES):
            _pause(attempt)
            try:
                self._stub.Upload(_upload_pieces(path, ref))
            except grpc.RpcError as error:
                failure = _translated(error)
                log.warning("upload attempt %d: %s", attempt + 1, error)
                continue
            return
        raise failure

    def listen(self) -> Iterator[None]:
        """Yield whenever there may be a message; end or raise when the connection is lost."""
        try:
            for _ in self._stub.Listen(pb.ListenRequest()):
                yield
        except grpc.RpcError as error:
            raise _translated(error) from error

    def close(self) -> None:
        """Hang up."""
        self._channel.close()


def _upload_pieces(path: Path, ref: BlobRef) -> Iterator[pb.UploadPiece]:
    yield pb.UploadPiece(reference=pb.BlobReference(digest=ref.digest, bytes=ref.bytes))
    for data in file_pieces(path, PIECE_BYTES):
        yield pb.UploadPiece(data=data)


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in file_pieces(path):
        digest.update(piece)
    return "sha256:" + digest.hexdigest()


def _pause(attempt: int) -> None:
    if attempt:
        time.sleep(random.uniform(0.5, 1.0) * 0.2 * 2**attempt)  # noqa: S311


def _translated(error: grpc.RpcError) -> EnvironmentFailedError | IdentityError:
    code, details = error.code(), error.details()
    if code in _REFUSED:
        return IdentityError("the gateway refuses this site", diagnostic=details)
    return EnvironmentFailedError("the gateway cannot be reached", diagnostic=f"{code}: {details}")
