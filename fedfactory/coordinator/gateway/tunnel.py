"""Which Fleet calls a site may send through the gateway: pure checks on method, node, key, form.

The caller's site comes from its certificate. It may speak only as its own node, with its own
registered key, and only the methods in METHODS, each of which goes to one fixed path.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from google.protobuf.message import DecodeError

from fedfactory.contracts.errors import IdentityError, ProtocolError
from fedfactory.wire.rpc.methods import MAX_FLEET_BODY_BYTES

MAX_BODY_BYTES: Final = MAX_FLEET_BODY_BYTES
MAX_SIGNATURE_BYTES: Final = 256
MAX_OPEN_REPLIES: Final = 8  # a site that leaves more unfinished than this loses the oldest's ring
# It becomes an HTTP header: digits and the few marks of ISO 8601, nothing else.
_TIMESTAMP: Final = re.compile(r"[0-9T:.+Z-]{10,40}")
METHODS: Final[Mapping[str, Any]] = {
    "ACTIVATE_NODE": ActivateNodeRequest,
    "DEACTIVATE_NODE": DeactivateNodeRequest,
    "SEND_NODE_HEARTBEAT": SendNodeHeartbeatRequest,
    "PULL_MESSAGES": PullMessagesRequest,
    "PUSH_MESSAGES": PushMessagesRequest,
    "PUSH_OBJECT": PushObjectRequest,
    "PULL_OBJECT": PullObjectRequest,
    "CONFIRM_MESSAGE_RECEIVED": ConfirmMessageReceivedRequest,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A site's registered node: Flower's id and the public key (PEM) it must sign with."""

    site: str
    node_id: int
    public_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One Fleet call as a site sent it: `signature` is over `timestamp` (ISO 8601)."""

    method: str
    public_key: bytes
    timestamp: str
    signature: bytes
    body: bytes


def check_call(node: Node, call: Call) -> None:
    """Refuse a call that is not this node's own, or not one of METHODS.

    The signature itself is SuperLink's to verify.

    Raises:
        IdentityError: another node's id or key, or a method that may not pass.
        ProtocolError: too large, or not of the form that the method's request has.
    """
    if call.method not in METHODS:
        raise IdentityError("this Fleet method may not pass the gateway")
    if call.public_key != node.public_key:
        raise IdentityError("the call is signed with another node's key")
    if len(call.body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a Fleet call may be {MAX_BODY_BYTES} bytes, not {len(call.body)}")
    if not _TIMESTAMP.fullmatch(call.timestamp) or len(call.signature) > MAX_SIGNATURE_BYTES:
        raise ProtocolError("the call's timestamp or signature does not have the agreed form")
    request = METHODS[call.method]()
    try:
        request.ParseFromString(call.body)
    except DecodeError as error:
        raise ProtocolError("the body is not a request of its method") from error
    _check_node(node, call.method, request)


def _check_node(node: Node, method: str, request: Any) -> None:
    if method == "ACTIVATE_NODE":
        if request.public_key != node.public_key:
            raise IdentityError("the call activates another node")
        return
    claimed = request.node_id if method == "DEACTIVATE_NODE" else request.node.node_id
    if claimed != node.node_id:
        raise IdentityError("the call speaks for another node")
    if method == "PUSH_MESSAGES":
        for message in request.messages_list:
            if message.metadata.src_node_id != node.node_id:
                raise IdentityError("a pushed message names another sender")
            if not message.metadata.reply_to_message_id:
                raise IdentityError("a site may push replies, not messages of its own")


def has_fetched(call: Call, answer: bytes) -> bool:
    """Whether a successful call gives its site what a message holds, or says that none is there."""
    if call.method == "PULL_MESSAGES":
        return not answer
    return call.method == "PULL_OBJECT"


@dataclass(slots=True)
class PushTracker:
    """Knows when a reply is whole: when the last object SuperLink asked for has been pushed.

    A reply is visible before its objects are: pulled too early, it costs Flower's back-off of 1 s.
    """

    # site -> session -> (the message that the reply answers, object ids still missing)
    _open: dict[str, OrderedDict[str, tuple[str, set[str]]]] = field(default_factory=dict)

    def completes(self, site: str, call: Call, answer: bytes) -> str | None:
        """Note one successful call; return the id of the message whose reply it made whole."""
        sessions = self._open.setdefault(site, OrderedDict())
        if call.method == "PUSH_MESSAGES":
            pushed = PushMessagesResponse.FromString(answer)
            replies = PushMessagesRequest.FromString(call.body).messages_list
            asked = replies[0].metadata.reply_to_message_id if replies else None
            if not asked or not pushed.objects_to_push:
                return asked
            sessions[pushed.session_id] = (asked, set(pushed.objects_to_push))
            if len(sessions) > MAX_OPEN_REPLIES:
                sessions.popitem(last=False)
        elif call.method == "PUSH_OBJECT" and PushObjectResponse.FromString(answer).stored:
            request = PushObjectRequest.FromString(call.body)
            asked, missing = sessions.get(request.session_id, (None, {request.object_id}))
            missing.discard(request.object_id)
            if not missing:
                sessions.pop(request.session_id, None)
                return asked
        return None
