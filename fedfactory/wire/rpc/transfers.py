"""Arrays to and from the gateway, for sites and operators: from disk to disk, in pieces.

Memory never follows their size. A transfer that was cut goes on where it was, both ways.
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
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.arriving_blob import ArrivingBlob
from fedfactory.wire.rpc.pieces import PIECE_BYTES, BlobReference
from fedfactory.wire.rpc.service import GatewayCalls

log = logging.getLogger("fedfactory.transfers")

TRIES: Final = 4
CALL_TIMEOUT_S: Final = 30.0
# A transfer that is slower than this is given up and tried again, so that nothing waits for ever.
SLOWEST_BYTES_PER_S: Final = 256 * 1024
FIRST_PAUSE_S: Final = 0.2
_REFUSED: Final = (
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,  # of the versions
)
_FINAL: Final = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)


class Transfers:
    """Moves blobs over an open channel to the gateway. Usable from several threads.

    Raises, from every call:
        EnvironmentFailedError: the gateway cannot be reached or broke off; try again later.
        IdentityError: one side does not take the other for who it says it is; the sentence is in
            the message.
        ProtocolError: the gateway does not take this call; trying again does not help.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self._calls = GatewayCalls(channel)

    def download(self, ref: BlobRef, into: Path) -> None:
        """Fetch a blob to `into`, which appears whole or not at all.

        A cut transfer goes on where it was, also after a restart; altered bytes are thrown away and
        fetched again.

        Raises:
            IntegrityError: the bytes were altered each time.
        """
        failures = alterations = 0
        with ArrivingBlob(into.with_name(f".{into.name}.part"), ref) as blob:
            while True:
                before = blob.length
                try:
                    self._fetch_rest(blob)
                except EnvironmentFailedError as error:
                    failures = 1 if blob.length - before >= PIECE_BYTES else failures + 1
                    log.warning("download cut at %d bytes: %s", blob.length, error.diagnostic)
                    if failures == TRIES:
                        raise
                    _pause(failures)
                    continue
                if blob.commit(into):
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
            raise translated(error) from error

    def upload(self, path: Path, ref: BlobRef) -> None:
        """Send a file as the blob `ref`; when the line breaks it goes on where it was.

        Raises:
            IntegrityError: the file is not what `ref` says, or arrived altered each time.
        """
        if (length := path.stat().st_size) != ref.bytes:
            raise IntegrityError(f"{path.name} is {length} bytes long, expected {ref.bytes}")
        failures, before = 0, 0
        while True:
            sent_from = 0
            try:
                if failures or ref.bytes > PIECE_BYTES:  # else asking costs as much as sending
                    sent_from = self._arrived(ref)
                self._calls.upload(_upload_parts(path, ref, sent_from), timeout=_patience_s(ref))
            except grpc.RpcError as error:
                failure = translated(error)
                got_on = sent_from - before >= PIECE_BYTES
                before = max(before, sent_from)
                failures = 1 if got_on else failures + 1
                log.warning("upload cut (%d): %s", failures, failure.diagnostic)
                if failures == TRIES or not isinstance(
                    failure, EnvironmentFailedError | IntegrityError
                ):
                    raise failure from error
                _pause(failures)
            else:
                return

    def _arrived(self, ref: BlobRef) -> int:
        reference = BlobReference(digest=ref.digest, bytes=ref.bytes)
        return min(self._calls.arrived(reference, timeout=CALL_TIMEOUT_S).offset, ref.bytes)


def translated(error: grpc.RpcError) -> FedfactoryError:
    """Return the error of our tree that a call's status is."""
    # Every error of a call is a grpc.Call too, which carries its status; the types do not say so.
    call = cast("grpc.Call", error)
    code, details = call.code(), str(call.details())
    diagnostic = f"{code.name}: {details}"
    if code in _REFUSED:
        return IdentityError(f"the gateway refuses: {details}", diagnostic=diagnostic)
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


def _upload_parts(path: Path, ref: BlobRef, offset: int) -> Iterator[BlobReference | bytes]:
    yield BlobReference(digest=ref.digest, bytes=ref.bytes, offset=offset)
    with path.open("rb", 0) as file:
        file.seek(offset)
        while data := file.read(PIECE_BYTES):
            yield data


def _patience_s(ref: BlobRef) -> float:
    return CALL_TIMEOUT_S + ref.bytes / SLOWEST_BYTES_PER_S


def _pause(failures: int) -> None:
    """Back off, with jitter so that the sites do not come back all at once."""
    time.sleep(random.uniform(0.5, 1.0) * FIRST_PAUSE_S * 2.0**failures)  # noqa: S311
