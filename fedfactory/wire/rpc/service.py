"""The gateway's four methods on gRPC: paths and wire forms, once for both ends.

gateway.proto is the contract. The generated code serves the small messages; array bytes go through
pieces.py. After a change of gateway.proto, from the repository's root:

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fedfactory/wire/rpc/gateway.proto
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

import grpc

from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.pieces import (
    BlobReference,
    Bytes,
    piece_from_wire,
    piece_to_wire,
    upload_from_wire,
    upload_to_wire,
)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Gateway"].full_name
# Trailing metadata of every call of a known peer: the gateway's clock in Unix seconds, so that a
# site's doctor can tell whose clock is wrong.
CLOCK: Final = "fedfactory-clock"
Context = grpc.ServicerContext


class GatewayService(Protocol):
    """What serves the four methods."""

    def tunnel(self, request: pb.TunnelRequest, context: Context) -> pb.TunnelReply:
        """Pass one Fleet call on."""

    def download(self, request: pb.DownloadRequest, context: Context) -> Iterator[bytes]:
        """Yield a blob's bytes."""

    def upload(self, parts: Iterator[BlobReference | Bytes], context: Context) -> pb.UploadReceipt:
        """Take a blob: its reference, then its bytes."""

    def listen(self, request: pb.ListenRequest, context: Context) -> Iterator[pb.Ring]:
        """Ring the caller's doorbell."""


def handlers(service: GatewayService) -> grpc.GenericRpcHandler[Any, Any]:
    """Return what a gRPC server needs to serve `service`."""
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Tunnel": grpc.unary_unary_rpc_method_handler(
                service.tunnel,
                pb.TunnelRequest.FromString,
                pb.TunnelReply.SerializeToString,
            ),
            "Download": grpc.unary_stream_rpc_method_handler(
                service.download, pb.DownloadRequest.FromString, piece_to_wire
            ),
            "Upload": grpc.stream_unary_rpc_method_handler(
                service.upload, upload_from_wire, pb.UploadReceipt.SerializeToString
            ),
            "Listen": grpc.unary_stream_rpc_method_handler(
                service.listen, pb.ListenRequest.FromString, pb.Ring.SerializeToString
            ),
        },
    )


class GatewayCalls:
    """The same four methods for a caller on an open channel; each raises grpc.RpcError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.tunnel: Callable[..., pb.TunnelReply] = channel.unary_unary(
            f"/{SERVICE}/Tunnel", pb.TunnelRequest.SerializeToString, pb.TunnelReply.FromString
        )
        self.download: Callable[..., Iterable[Bytes]] = channel.unary_stream(
            f"/{SERVICE}/Download", pb.DownloadRequest.SerializeToString, piece_from_wire
        )
        self.upload: Callable[..., pb.UploadReceipt] = channel.stream_unary(
            f"/{SERVICE}/Upload", upload_to_wire, pb.UploadReceipt.FromString
        )
        self.listen: Callable[..., Iterable[pb.Ring]] = channel.unary_stream(
            f"/{SERVICE}/Listen", pb.ListenRequest.SerializeToString, pb.Ring.FromString
        )
