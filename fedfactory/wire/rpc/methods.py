"""Every method that may be called on the one public port: its form, who may call it, its limits.

The table serves both ends: service.py makes handlers and calls of it. gateway.proto is the
contract; what operators and the invited say is JSON in a Document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.contracts.run_plan import RunPlan
from fedfactory.identity.roles import Role
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
from fedfactory.wire.rpc.pieces import (
    PIECE_BYTES,
    piece_from_wire,
    piece_to_wire,
    upload_from_wire,
    upload_to_wire,
)

Kind = Literal["order", "transfer", "listen", "answer", "document", "enrol", "renew", "health"]
T = TypeVar("T")

KIB: Final = 1024
MAX_SMALL_BYTES: Final = 4 * KIB
MAX_DOCUMENT_BYTES: Final = 1024 * KIB
MAX_ORDER_BYTES: Final = 1_000_000
_FRAME_BYTES: Final = 4 * KIB  # what a message adds to the bytes it carries


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a value is written on the wire and read again; reading raises ProtocolError."""

    to_wire: Callable[[Any], bytes]
    from_wire: Callable[[bytes], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One method. `max_bytes` is the largest message that it takes, `kind` what it is counted as.

    `streams` says which way a stream goes: up from the caller, down to it, or neither.
    """

    service: str
    name: str
    roles: frozenset[Role]
    kind: Kind
    request: Form
    answer: Form
    max_bytes: int
    streams: Literal["", "up", "down"] = ""

    @property
    def path(self) -> str:
        """Its path in HTTP/2."""
        return f"/{self.service}/{self.name}"


def _strict(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Let a reader of protobuf say what it found as an error of ours."""

    def strictly(message: bytes) -> T:
        try:
            return read(message)
        except (DecodeError, UnicodeDecodeError) as error:
            raise ProtocolError("a message does not have the form of its method") from error

    return strictly


def _proto(kind: Any) -> Form:
    return Form(to_wire=kind.SerializeToString, from_wire=_strict(kind.FromString))


def document(kind: type[Any]) -> Form:
    """Return the form of a value that travels as JSON in a Document."""

    def write(value: Any) -> bytes:
        return pb.Document(json=to_json(value).encode()).SerializeToString()

    def read(message: bytes) -> Any:
        return from_json(kind, pb.Document.FromString(message).json)

    return Form(to_wire=write, from_wire=_strict(read))


_PIECES: Final = Form(to_wire=piece_to_wire, from_wire=_strict(piece_from_wire))
_PARTS: Final = Form(to_wire=upload_to_wire, from_wire=_strict(upload_from_wire))
_SERVICES: Final = pb.DESCRIPTOR.services_by_name
GATEWAY: Final = _SERVICES["Gateway"].full_name
ENROLMENT: Final = _SERVICES["Enrolment"].full_name
OPERATIONS: Final = _SERVICES["Operations"].full_name

HEALTH: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_SITE: Final = frozenset({Role.SITE})
_OPERATOR: Final = frozenset({Role.OPERATOR})
_ONLOOKERS: Final = frozenset({Role.OPERATOR, Role.VIEWER})
_MEMBERS: Final = frozenset({Role.SITE, Role.OPERATOR, Role.VIEWER})


def _gateway(
    name: str,
    request: Form,
    answer: Form,
    *,
    roles: frozenset[Role] = _SITE,
    kind: Kind,
    max_bytes: int = MAX_SMALL_BYTES,
    streams: Literal["", "up", "down"] = "",
) -> Method:
    return Method(
        service=GATEWAY,
        name=name,
        roles=roles,
        kind=kind,
        request=request,
        answer=answer,
        max_bytes=max_bytes,
        streams=streams,
    )


def _health(name: str, streams: Literal["", "down"] = "") -> Method:
    return Method(
        service=HEALTH,
        name=name,
        roles=_MEMBERS,
        kind="health",
        request=_proto(health_pb2.HealthCheckRequest),
        answer=_proto(health_pb2.HealthCheckResponse),
        max_bytes=MAX_SMALL_BYTES,
        streams=streams,
    )


def _document(
    service: str,
    name: str,
    request: type[Any],
    answer: type[Any],
    *,
    roles: frozenset[Role] = _OPERATOR,
    kind: Kind = "document",
    streams: Literal["", "down"] = "",
) -> Method:
    return Method(
        service=service,
        name=name,
        roles=roles,
        kind=kind,
        request=document(request),
        answer=document(answer),
        max_bytes=MAX_DOCUMENT_BYTES if kind == "document" else 64 * KIB,
        streams=streams,
    )


METHODS: Final = (
    _gateway("FetchOrder", _proto(pb.FetchRequest), _proto(pb.FetchedOrder), kind="order"),
    _gateway(
        "SendReply",
        _proto(pb.SiteReply),
        _proto(pb.ReplyReceipt),
        kind="order",
        max_bytes=MAX_ORDER_BYTES + _FRAME_BYTES,
    ),
    _gateway(
        "Download",
        _proto(pb.DownloadRequest),
        _PIECES,
        roles=_MEMBERS,
        kind="transfer",
        streams="down",
    ),
    _gateway(
        "Arrived",
        _proto(pb.BlobReference),
        _proto(pb.ArrivedBytes),
        roles=_SITE | _OPERATOR,
        kind="transfer",
    ),
    _gateway(
        "Upload",
        _PARTS,
        _proto(pb.UploadReceipt),
        roles=_SITE | _OPERATOR,
        kind="transfer",
        max_bytes=2 * PIECE_BYTES + _FRAME_BYTES,
        streams="up",
    ),
    _gateway("Listen", _proto(pb.ListenRequest), _proto(pb.Ring), kind="listen", streams="down"),
    _gateway(
        "Answer",
        _proto(pb.SiteAnswer),
        _proto(pb.AnswerReceipt),
        kind="answer",
        max_bytes=MAX_DOCUMENT_BYTES,
    ),
    _document(
        ENROLMENT,
        "Enrol",
        EnrolRequest,
        Certified,
        roles=frozenset({Role.INVITED}),
        kind="enrol",
    ),
    _document(ENROLMENT, "Renew", RenewRequest, Certified, roles=_MEMBERS, kind="renew"),
    _document(OPERATIONS, "Submit", RunPlan, Submitted),
    _document(OPERATIONS, "ListRuns", RunsRequest, Runs, roles=_ONLOOKERS),
    _document(OPERATIONS, "Watch", WatchRequest, Watched, roles=_ONLOOKERS, streams="down"),
    _document(OPERATIONS, "Stop", StopRequest, Done),
    _document(OPERATIONS, "Resume", ResumeRequest, Done),
    _document(OPERATIONS, "Logs", LogsOfSite, LogsGiven),
    _document(OPERATIONS, "FindModel", ModelRequest, ModelFound, roles=_ONLOOKERS),
    _document(OPERATIONS, "Invite", InviteRequest, Invitation),
    _document(OPERATIONS, "ListMembers", MembersRequest, Members, roles=_ONLOOKERS),
    _document(OPERATIONS, "Revoke", RevokeRequest, Done),
    _health("Check"),
    _health("Watch", "down"),
)
BY_PATH: Final = {method.path: method for method in METHODS}
