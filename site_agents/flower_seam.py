"""Everything private of Flower's that a site's agent uses. Contract tests pin it.

The agent speaks Flower's Fleet API with Flower's own client, whose last interceptor sends each call
through the gateway's tunnel instead of HTTP. Nothing here decides what work is done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedfactory.contracts.errors import EnvironmentFailedError, ProtocolError
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD

# Flower admits 10 to 1800 s and calls a node lost after twice the interval; then it drops replies
# of the node's that were not pulled. Whether a site is here the gateway knows by its doorbell.
HEARTBEAT_S: Final = 20.0
_OBJECT_TRIES: Final = 250
_OBJECT_WAIT_S: Final = 0.02

log = logging.getLogger("site_agents.flower_seam")

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")
Tunnel = Callable[[str, bytes, bytes, str, bytes], tuple[int, bytes]]


class FleetUnavailableError(EnvironmentFailedError):
    """Flower's SuperLink did not take the call; try again later."""


class RunGoneError(FleetUnavailableError):
    """Flower's run that a message is of is over: nobody waits for an answer to it any more."""


@dataclass(slots=True)
class Incoming:
    """One message addressed to this node: its JSON text, and the handle to answer with.

    What is no message of Flower's has an empty text, and cannot be answered. `reply` is set by the
    first try to answer: SuperLink takes one reply to a message, and that one again until it is
    whole; of another it says nothing and keeps nothing.
    """

    text: str
    message: Message | None
    reply: Message | None = None


class _TunnelInterceptor:
    """Answers each Fleet call through the tunnel; the HTTP transport is never reached."""

    def __init__(self, tunnel: Tunnel, private_key: ec.EllipticCurvePrivateKey) -> None:
        self._tunnel = tunnel
        self._private_key = private_key
        self._public_key = private_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        del call_next
        method = _snake_upper(context.rpc_method.rpartition("/")[2])
        timestamp = datetime.now(UTC).isoformat()
        signature = self._private_key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256()))
        status, body = self._tunnel(
            method, context.request.content, self._public_key, timestamp, signature
        )
        return httpx.Response(status, content=body, request=context.request)


class _TunnelClient(FleetHttpClient):
    """Flower's client of the Fleet API, whose calls all go through the tunnel.

    Its base class would make an HTTP client that is never used, which reads the user's proxies and
    certificate files from the environment and fails on those that it cannot use.
    """

    def __init__(self, tunnel: _TunnelInterceptor) -> None:
        self._base_url = "https://tunnel.invalid"
        self._interceptors = (tunnel,)
        self._retry_invoker = None
        # Builds requests; the interceptor answers before anything is sent.
        self._client = httpx.Client(transport=httpx.BaseTransport(), trust_env=False)


def _snake_upper(name: str) -> str:
    return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()


class FleetNode:
    """This site's node at SuperLink: activate, heartbeat, pull and answer messages.

    Every method raises FleetUnavailableError when SuperLink or the gateway cannot be reached.
    """

    def __init__(self, tunnel: Tunnel, private_key_pem: bytes) -> None:
        key = serialization.load_pem_private_key(private_key_pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ProtocolError("the node key must be an elliptic-curve key")
        self._public_key = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._client = _TunnelClient(_TunnelInterceptor(tunnel, key))
        self._node = Node()

    def activate(self) -> int:
        """Come online; return the node id. A node still counted as online keeps its id."""
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_S)
        try:
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)
        except httpx.HTTPStatusError as error:
            # 412: SuperLink still counts this node as online after our restart.
            still_online = error.response.status_code == httpx.codes.PRECONDITION_FAILED
            if not (still_online and self._node.node_id):
                raise _unavailable(error) from error
            # Until a heartbeat it is online only as long as it was before: replies sent later would
            # be lost.
            if not self.heartbeat():
                raise FleetUnavailableError("SuperLink no longer knows this node") from error
        return int(self._node.node_id)

    def resume(self, node_id: int) -> None:
        """Go on under a node id known from before a restart."""
        self._node = Node(node_id=node_id)

    def deactivate(self) -> None:
        """Go offline, so that the next activation works at once."""
        _call(self._client.DeactivateNode, DeactivateNodeRequest(node_id=self._node.node_id))

    def heartbeat(self) -> bool:
        """Tell SuperLink that this node lives; False if it no longer knows the node."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        return bool(_call(self._client.SendNodeHeartbeat, request).success)

    def pull(self) -> Incoming | None:
        """Take the next message for this node, whole and confirmed; None if there is none.

        Raises:
            RunGoneError: there was one of a run that is over; there may be more behind it.
        """
        reply = _call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not reply.messages_list:
            return None
        given = reply.messages_list[0]
        message_id, run_id = given.metadata.message_id, given.metadata.run_id
        record = _record_of(reply.message_object_trees[0])
        content = self._pull_object(run_id, record) if record else b""
        _call(
            self._client.ConfirmMessageReceived,
            ConfirmMessageReceivedRequest(
                node=self._node, run_id=run_id, message_object_id=message_id
            ),
        )
        try:
            text = str(ConfigRecord.inflate(content)[MESSAGE_FIELD])
            return Incoming(text=text, message=message_from_proto(given))
        except Exception as error:  # noqa: BLE001  Flower's, on bytes of a stranger's choosing
            log.warning("a message is no order (%s)", type(error).__name__)
            return Incoming(text="", message=None)

    def answer(self, incoming: Incoming, text: str) -> None:
        """Send the reply to a message; after a failure the same again, with the same text.

        Raises:
            RunGoneError: the run that asked is over, or asked this site's node of before.
        """
        assert incoming.message is not None
        if incoming.message.metadata.dst_node_id != self._node.node_id:
            raise RunGoneError
        if incoming.reply is None:
            content = RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: text})})
            incoming.reply = Message(content, reply_to=incoming.message)
        reply = incoming.reply
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            tree = get_object_tree(reply)
            pushed = _call(
                self._client.PushMessages,
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[0.0],
                ),
            )
            for object_id in pushed.objects_to_push:
                stored = _call(
                    self._client.PushObject,
                    PushObjectRequest(
                        node=self._node,
                        run_id=reply.metadata.run_id,
                        session_id=pushed.session_id,
                        object_id=object_id,
                        object_content=objects[object_id].deflate(),
                    ),
                )
                if not stored.stored:
                    raise FleetUnavailableError("SuperLink did not keep the reply; send it again")

    def close(self) -> None:
        """Close the client."""
        self._client.close()

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        for _ in range(_OBJECT_TRIES):
            reply = _call(
                self._client.PullObject,
                PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id),
            )
            if not reply.object_found:
                break
            if reply.object_available:
                return bytes(reply.object_content)
            time.sleep(_OBJECT_WAIT_S)  # the message is visible before its objects are
        raise FleetUnavailableError("a part of a message never arrived at SuperLink")


def _record_of(message: ObjectTree) -> str | None:
    """Return the id of an order's one record; None if the message has another form.

    Of a message's three objects (message, content, record) it alone is asked for: the message comes
    with the answer that names them, and each costs SuperLink as much as all else it does.
    """
    if len(message.children) == 1 == len(message.children[0].children):
        (record,) = message.children[0].children
        return str(record.object_id)
    return None


def _call(method: Callable[[RequestT], ReplyT], request: RequestT) -> ReplyT:
    try:
        return method(request)
    except httpx.HTTPStatusError as error:
        # 403: FLEET_RUN_STATUS_NOT_ALLOWED of flwr.supercore.error.
        if error.response.status_code == httpx.codes.FORBIDDEN:
            raise RunGoneError(diagnostic=str(error)) from error
        raise _unavailable(error) from error
    except (httpx.HTTPError, ValueError) as error:
        raise FleetUnavailableError(diagnostic=str(error)) from error


def _unavailable(error: httpx.HTTPStatusError) -> FleetUnavailableError:
    status = error.response.status_code
    if status == httpx.codes.UNAUTHORIZED:  # a node's signature is of the time at which it signs
        return FleetUnavailableError(
            "Flower's SuperLink does not take this site's signature: this machine's clock may be"
            " off: site-agent doctor compares it with the gateway's"
        )
    return FleetUnavailableError(diagnostic=f"SuperLink answered with HTTP status {status}")
