"""Agents without worker, ledger or policy that speak the real protocol: many in one process.

`python -m bench.light_agents FOLDER...`: each FOLDER holds a site's identity/ and gateway.txt. One
event loop serves them all. An agent verifies nothing and answers each order with an update of zeros
but for its first number, so that no two updates are equal. After an error it goes on: a doorbell
that ended is opened again, a call that failed in passing is made again. It ends with its standard
input. On standard output: one JSON line for each order, with the seconds from the doorbell to the
order in hand.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order
from fedfactory.contracts.plans import SignedOrder
from fedfactory.contracts.questions import Answer, Preflight
from fedfactory.contracts.updates import Payload, Reply, Update
from fedfactory.contracts.versions import own_version
from fedfactory.identity.enrolment import load_identity
from fedfactory.wire.arrays import ArrayFile, ArrayWriter
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import BY_PATH, GATEWAY
from fedfactory.wire.rpc.pieces import PIECE_BYTES
from fedfactory.wire.rpc.service import VERSION
from fedfactory.wire.tls import KEEPALIVE_MS, MAX_MESSAGE_BYTES, channel_credentials

POLL_S = 30.0  # how long without a ring until it looks by itself
CALL_TIMEOUT_S = 60.0
TRIES = 8
LONGEST_PAUSE_S = 2.0
OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
# These do not pass: the order is of a run that is over, or the caller is at fault.
FINAL = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.FAILED_PRECONDITION,
)
FIT = to_json(Answer(preflight=Preflight(code="", version=own_version()), logs=None)).encode()


class Calls:
    """The gateway's methods on a channel of an event loop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        openers = {
            "": channel.unary_unary,
            "up": channel.stream_unary,
            "down": channel.unary_stream,
        }

        def opened(name: str) -> Callable[..., Any]:
            method = BY_PATH[f"/{GATEWAY}/{name}"]
            opener: Callable[..., Any] = openers[method.streams]
            made = opener(method.path, method.request.to_wire, method.answer.from_wire)
            metadata = grpc.aio.Metadata((VERSION, own_version()))
            return lambda request, timeout=CALL_TIMEOUT_S: made(
                request, timeout=timeout, metadata=metadata
            )

        self.fetch, self.send = opened("FetchOrder"), opened("SendReply")
        self.listen, self.answer = opened("Listen"), opened("Answer")
        self.download, self.upload = opened("Download"), opened("Upload")


class Zeros:
    """An update of a model's form, as bytes; the same for all sites of the process."""

    def __init__(self) -> None:
        self._form: bytearray | None = None
        self._first = 0  # where the first number lies

    def update(self, base: bytes, order_digest: str) -> bytes:
        """Return zeros in the form of the model `base`, but for a number of the order's own."""
        if self._form is None:
            self._form = bytearray(_zeros_like(base))
            self._first = 8 + int.from_bytes(self._form[:8], "little")  # safetensors' header
        share = int(order_digest.removeprefix("sha256:")[:6], 16) / 2**24
        own = np.float32(1e-3 * (1 + share)).tobytes()
        self._form[self._first : self._first + len(own)] = own
        return bytes(self._form)


def _zeros_like(base: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="fedfactory-bench-") as folder:
        model, update = Path(folder) / "model", Path(folder) / "update"
        model.write_bytes(base)
        with ArrayFile(model) as file:
            spec = file.spec.update_spec()
        writer = ArrayWriter(update, spec)
        for tensor in spec.tensors:
            writer.write(np.zeros(tensor.elements, dtype=np.float32))
        writer.commit()
        return update.read_bytes()


class LightAgent:
    """One site, for as long as the loop runs."""

    def __init__(self, home: Path, zeros: Zeros) -> None:
        address, identity = (home / "gateway.txt").read_text(), load_identity(home / "identity")
        channel = grpc.aio.secure_channel(address, channel_credentials(identity), options=OPTIONS)
        self._calls = Calls(channel)
        self._zeros = zeros
        self._rung = asyncio.Event()
        self._rung_at: float | None = None  # for a message that is not in hand yet
        self._doorbell: Any = None

    async def listen(self) -> None:
        """Keep the doorbell open: who opens it is asked again for what has no answer yet."""
        while True:
            self._doorbell = self._calls.listen(pb.ListenRequest(), timeout=None)
            with suppress(grpc.aio.AioRpcError):
                await self._hear()
            await asyncio.sleep(random.uniform(0.2, 1.0))

    async def _hear(self) -> None:
        try:
            async for ring in self._doorbell:
                if ring.question_id:
                    answer = pb.SiteAnswer(question_id=ring.question_id, answer=FIT)
                    await self._calls.answer(answer)
                if self._rung_at is None:
                    self._rung_at = time.time()
                self._rung.set()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # else it is we who hung up

    async def work(self) -> None:
        """Fetch what waits whenever the doorbell rings, and answer it."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._rung.wait(), POLL_S)
            self._rung.clear()
            more = True
            while more:
                try:
                    more = await self._take()
                except grpc.aio.AioRpcError as error:
                    print(f"given up: {error.code()}: {error.details()}", file=sys.stderr)
                    more = False
                    self._doorbell.cancel()  # an order may be lost: be asked again

    async def _take(self) -> bool:
        """Answer the next order; return whether another waits."""
        fetched = await self._calls.fetch(pb.FetchRequest())
        rung_at, self._rung_at = self._rung_at, None
        if not fetched.message_id:
            return False
        reply = pb.SiteReply(message_id=fetched.message_id, text=b"{}")
        with suppress(ProtocolError):  # the end of a run is no order
            order = from_json(SignedOrder, fetched.text).envelope.order
            if rung_at is not None:  # None: it looked by itself, before it was rung
                line = {"doorbell_s": time.time() - rung_at, "round": order.round}
                print(json.dumps(line), flush=True)
            reply = await self._answer(fetched.message_id, order)
        await _patiently(lambda: self._calls.send(reply))
        return bool(fetched.more)

    async def _answer(self, message_id: str, order: Order) -> pb.SiteReply:
        base = await _patiently(lambda: self._download(order.base))
        key, payload = order.key(), None
        if order.kind == "train":
            data = self._zeros.update(base, key.order_digest)
            blob = BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), bytes=len(data))
            await _patiently(lambda: self._calls.upload(_parts(blob, data)))
            payload = Payload(form="delta", blob=blob)
        update = Update(
            work=key,
            payload=payload,
            examples=1,
            metrics={"loss": 1.0, "accuracy": 0.5},
            seconds=0.0,
            privacy=None,
        )
        text = to_json(Reply(update=update, refusal=None, anchor=None)).encode()
        digest = "" if payload is None else payload.blob.digest
        return pb.SiteReply(message_id=message_id, text=text, digest=digest)

    async def _download(self, ref: BlobRef) -> bytes:
        pieces = self._calls.download(pb.DownloadRequest(digest=ref.digest, offset=0))
        return b"".join([piece async for piece in pieces])


async def _parts(ref: BlobRef, data: bytes) -> AsyncIterator[pb.BlobReference | bytes]:
    yield pb.BlobReference(digest=ref.digest, bytes=ref.bytes, offset=0)
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


async def _patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call; again, a few times, while its failure is one that passes."""
    for attempt in range(TRIES):
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() in FINAL or attempt == TRIES - 1:
                raise
        await asyncio.sleep(random.uniform(0.5, 1.0) * min(LONGEST_PAUSE_S, 0.2 * 2**attempt))
    raise AssertionError


async def _serve(folders: list[Path]) -> None:
    zeros = Zeros()
    agents = [LightAgent(folder, zeros) for folder in folders]
    tasks = [asyncio.create_task(job()) for a in agents for job in (a.listen, a.work)]
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    # No task of an agent's ends by itself: one that does has met a fault of this program.
    done, _ = await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.light_agents", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    asyncio.run(_serve(parser.parse_args().folders))


if __name__ == "__main__":
    main()
