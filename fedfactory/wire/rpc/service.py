"""The three services of the one public port, for both ends, made of the table in methods.py.

The generated code serves the small messages; array bytes go through pieces.py. After a change of
gateway.proto, from the repository's root:

    python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. fedfactory/wire/rpc/gateway.proto
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

import grpc

from fedfactory.contracts.run_plan import RunPlan
from fedfactory.contracts.versions import own_version
from fedfactory.identity.facts import CertificateFacts
from fedfactory.identity.roles import Peer
from fedfactory.wire.membership import (
    Certified,
    EnrolRequest,
    Invitation,
    InviteRequest,
    Members,
    MembersRequest,
    RenewRequest,
    RevokeRequest,
)
from fedfactory.wire.operations import (
    Done,
    LogsGiven,
    LogsOfSite,
    ModelFound,
    ModelRequest,
    ResumeRequest,
    Runs,
    RunsRequest,
    StopRequest,
    Submitted,
    Watched,
    WatchRequest,
)
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.methods import (
    BY_PATH,
    ENROLMENT,
    GATEWAY,
    HEALTH,
    METHODS,
    OPERATIONS,
    Method,
)
from fedfactory.wire.rpc.pieces import Bytes

# Trailing metadata of every call of a known peer: the gateway's clock in Unix seconds, so that a
# site's doctor can tell whose clock is wrong, and its version.
CLOCK: Final = "fedfactory-clock"
# Metadata of every call, both ways.
VERSION: Final = "fedfactory-version"
Context = grpc.ServicerContext
# Serves one call of a method: raw messages in, raw messages out.
Serve = Callable[[Method, Iterator[bytes], Context], Iterator[bytes]]


class EnrolmentService(Protocol):
    """What serves Enrolment. `version` is the caller's; a FedfactoryError refuses."""

    def enrol(
        self, peer: Peer, facts: CertificateFacts, wanted: EnrolRequest, version: str
    ) -> Certified:
        """Certify an invited peer; `facts` are of the invitation's certificate."""

    def renew(
        self, peer: Peer, facts: CertificateFacts, wanted: RenewRequest, version: str
    ) -> Certified:
        """Certify a member's key anew."""


class OperationsService(Protocol):
    """What serves Operations to the operator or viewer `peer`; a FedfactoryError refuses."""

    def submit(self, peer: Peer, plan: RunPlan) -> Submitted:
        """Take a run, or say why not."""

    def list_runs(self, peer: Peer, wanted: RunsRequest) -> Runs:
        """List the runs."""

    def watch(self, peer: Peer, wanted: WatchRequest) -> Iterator[Watched]:
        """Yield a run's events. Must yield every few seconds: only then is a cut stream left."""

    def stop(self, peer: Peer, wanted: StopRequest) -> Done:
        """Stop a run."""

    def resume(self, peer: Peer, wanted: ResumeRequest) -> Done:
        """Let a run go on."""

    def logs(self, peer: Peer, wanted: LogsOfSite) -> LogsGiven:
        """Ask a site for what it lets out."""

    def find_model(self, peer: Peer, wanted: ModelRequest) -> ModelFound:
        """Find a model, and lend it to the caller (Gateway.lend)."""

    def invite(self, peer: Peer, wanted: InviteRequest) -> Invitation:
        """Invite somebody."""

    def list_members(self, peer: Peer, wanted: MembersRequest) -> Members:
        """List the members."""

    def revoke(self, peer: Peer, wanted: RevokeRequest) -> Done:
        """Cut a member off."""


def handlers(serve: Serve) -> list[grpc.GenericRpcHandler[Any, Any]]:
    """Return what a gRPC server needs to let `serve` serve every method.

    All are registered as streams of raw messages, which look the same on the wire: so the caller is
    judged before its message is read, and a malformed one is ours to answer.
    """
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                method.name: grpc.stream_stream_rpc_method_handler(
                    functools.partial(serve, method), None, None
                )
                for method in METHODS
                if method.service == service
            },
        )
        for service in (GATEWAY, ENROLMENT, OPERATIONS, HEALTH)
    ]


class GatewayCalls:
    """Gateway's methods for a caller on an open channel; each raises grpc.RpcError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.fetch_order: Callable[..., pb.FetchedOrder] = _call(channel, GATEWAY, "FetchOrder")
        self.send_reply: Callable[..., pb.ReplyReceipt] = _call(channel, GATEWAY, "SendReply")
        self.download: Callable[..., Iterable[Bytes]] = _call(channel, GATEWAY, "Download")
        self.arrived: Callable[..., pb.ArrivedBytes] = _call(channel, GATEWAY, "Arrived")
        self.upload: Callable[..., pb.UploadReceipt] = _call(channel, GATEWAY, "Upload")
        self.listen: Callable[..., Iterable[pb.Ring]] = _call(channel, GATEWAY, "Listen")
        self.answer: Callable[..., pb.AnswerReceipt] = _call(channel, GATEWAY, "Answer")


class EnrolmentCalls:
    """Enrolment's methods: values in and out, `timeout` in seconds; each raises grpc.RpcError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.enrol: Callable[..., Certified] = _call(channel, ENROLMENT, "Enrol")
        self.renew: Callable[..., Certified] = _call(channel, ENROLMENT, "Renew")


class OperationsCalls:
    """Operations' methods: values in and out, `timeout` in seconds; each raises grpc.RpcError."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.submit: Callable[..., Submitted] = _call(channel, OPERATIONS, "Submit")
        self.list_runs: Callable[..., Runs] = _call(channel, OPERATIONS, "ListRuns")
        self.watch: Callable[..., Iterator[Watched]] = _call(channel, OPERATIONS, "Watch")
        self.stop: Callable[..., Done] = _call(channel, OPERATIONS, "Stop")
        self.resume: Callable[..., Done] = _call(channel, OPERATIONS, "Resume")
        self.logs: Callable[..., LogsGiven] = _call(channel, OPERATIONS, "Logs")
        self.find_model: Callable[..., ModelFound] = _call(channel, OPERATIONS, "FindModel")
        self.invite: Callable[..., Invitation] = _call(channel, OPERATIONS, "Invite")
        self.list_members: Callable[..., Members] = _call(channel, OPERATIONS, "ListMembers")
        self.revoke: Callable[..., Done] = _call(channel, OPERATIONS, "Revoke")


def _call(channel: grpc.Channel, service: str, name: str) -> Any:
    method = BY_PATH[f"/{service}/{name}"]
    openers: dict[str, Callable[..., Any]] = {
        "": channel.unary_unary,
        "up": channel.stream_unary,
        "down": channel.unary_stream,
    }
    made = openers[method.streams](method.path, method.request.to_wire, method.answer.from_wire)
    return functools.partial(made, metadata=((VERSION, own_version()),))
