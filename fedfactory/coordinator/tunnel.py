"""Which Fleet calls a site may send through the gateway: pure checks on method, node and key.

The caller's site comes from its certificate. It may speak only as its own node, with its own
registered key, and only the methods in METHODS, each of which goes to one fixed path.
"""

from __future__ import annotations

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

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
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


def check_call(node: Node, method: str, public_key: bytes, body: bytes) -> None:
    """Refuse a call that is not this node's own, or not one of METHODS.

    Raises:
        IdentityError: another node's id or key, or a method that may not pass.
        ProtocolError: a body that is too large or does not parse as the method's request.
    """
    if method not in METHODS:
        raise IdentityError("this Fleet method may not pass the gateway")
    if public_key != node.public_key:
        raise IdentityError("the call is signed with another node's key")
    if len(body) > MAX_BODY_BYTES:
        raise ProtocolError(f"a Fleet call may be {MAX_BODY_BYTES} bytes long, not {len(body)}")
    request = METHODS[method]()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise ProtocolError("the body is not a request of its method") from error
    if method == "ACTIVATE_NODE":
        if request.public_key != node.public_key:
            raise IdentityError("the call activates another node")
        return
    claimed = request.node_id if method == "DEACTIVATE_NODE" else request.node.node_id
    if claimed != node.node_id:
        raise IdentityError("the call speaks for another node")
    if method == "PUSH_MESSAGES" and any(
        message.metadata.src_node_id != node.node_id for message in request.messages_list
    ):
        raise IdentityError("a pushed message names another sender")


@dataclass(slots=True)
class PushTracker:
    """Knows when a reply is whole: when the last object SuperLink asked for has been pushed.

    A reply is visible before its objects are: pulled too early, it costs Flower's back-off of 1 s.
    """

    _missing: dict[str, tuple[str, set[str]]] = field(default_factory=dict)

    def completes(self, method: str, body: bytes, answer: bytes) -> str | None:
        """Note one successful call; return the id of the message whose reply it made whole."""
        if method == "PUSH_MESSAGES":
            pushed = PushMessagesResponse.FromString(answer)
            replies = PushMessagesRequest.FromString(body).messages_list
            asked = replies[0].metadata.reply_to_message_id if replies else None
            if not asked or not pushed.objects_to_push:
                return asked
            self._missing[pushed.session_id] = (asked, set(pushed.objects_to_push))
        if method == "PUSH_OBJECT" and PushObjectResponse.FromString(answer).stored:
            request = PushObjectRequest.FromString(body)
            asked, missing = self._missing.get(request.session_id, (None, set()))
            missing.discard(request.object_id)
            if not missing:
                self._missing.pop(request.session_id, None)
                return asked
        return None
