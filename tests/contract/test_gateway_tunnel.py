"""What may pass to SuperLink: the caller's own node, its own key, eight methods, small bodies."""

import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    Message,
    Metadata,
    PullObjectRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node

from fedfactory.contracts.errors import EnvironmentFailedError, IdentityError, ProtocolError
from fedfactory.coordinator.flower_seam import FLEET_PATHS
from fedfactory.coordinator.gateway.tunnel import MAX_BODY_BYTES, METHODS
from fedfactory.wire.rpc import gateway_pb2 as pb
from tests.contract.gateway_rig import open_rig

MINE, THEIRS = 7, 8


@pytest.fixture
def rig(tmp_path):
    with open_rig(tmp_path) as rig:
        rig.site = rig.admit("cesga", MINE)
        rig.admit("lumi", THEIRS)
        yield rig


def requests(rig, node_id, site):
    node = Node(node_id=node_id)
    reply = Message(metadata=Metadata(src_node_id=node_id, reply_to_message_id="asked"))
    return {
        "ACTIVATE_NODE": ActivateNodeRequest(
            public_key=rig.public_key(site), heartbeat_interval=10
        ),
        "DEACTIVATE_NODE": DeactivateNodeRequest(node_id=node_id),
        "SEND_NODE_HEARTBEAT": SendNodeHeartbeatRequest(node=node, heartbeat_interval=10),
        "PULL_MESSAGES": PullMessagesRequest(node=node),
        "PUSH_MESSAGES": PushMessagesRequest(node=node, messages_list=[reply]),
        "PUSH_OBJECT": PushObjectRequest(node=node, object_id="o"),
        "PULL_OBJECT": PullObjectRequest(node=node, object_id="o"),
        "CONFIRM_MESSAGE_RECEIVED": ConfirmMessageReceivedRequest(node=node),
    }


def test_the_table_the_paths_and_the_protocol_name_the_same_methods():
    named = set(pb.FleetMethod.keys()) - {"FLEET_METHOD_UNSPECIFIED"}
    assert set(METHODS) == set(FLEET_PATHS) == named
    assert all(path.startswith("/v1/fleet/") for path in FLEET_PATHS.values())
    assert not any(word in path for path in FLEET_PATHS.values() for word in ("register", "get-"))


@pytest.mark.parametrize("method", METHODS)
def test_a_sites_own_calls_pass_unchanged(rig, method):
    body = requests(rig, MINE, "cesga")[method].SerializeToString()
    signed = rig.signed("cesga")
    rig.answer = lambda method, body: (418, b"answer")
    assert rig.site.tunnel(method, body, **signed) == (418, b"answer")
    assert rig.forwarded == [
        (method, signed["public_key"], signed["timestamp"], signed["signature"], body)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_another_nodes_id_is_refused(rig, method):
    body = requests(rig, THEIRS, "lumi")[method].SerializeToString()
    with pytest.raises(IdentityError):
        rig.site.tunnel(method, body, **rig.signed("cesga"))
    assert rig.forwarded == []


@pytest.mark.parametrize("method", METHODS)
def test_another_nodes_key_is_refused_whatever_the_body_says(rig, method):
    for node_id, site in ((MINE, "cesga"), (THEIRS, "lumi")):
        body = requests(rig, node_id, site)[method].SerializeToString()
        with pytest.raises(IdentityError):
            rig.site.tunnel(method, body, **rig.signed("lumi"))
    assert rig.forwarded == []


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_body_speaks_for_nobody(rig, method):
    with pytest.raises(IdentityError):
        rig.site.tunnel(method, b"", **rig.signed("cesga"))


def test_the_last_of_two_node_fields_counts_as_it_does_at_superlink(rig):
    """Protobuf merges repeated fields: what we check must be what SuperLink reads."""
    mine = PullMessagesRequest(node=Node(node_id=MINE)).SerializeToString()
    theirs = PullMessagesRequest(node=Node(node_id=THEIRS)).SerializeToString()
    with pytest.raises(IdentityError):
        rig.site.tunnel("PULL_MESSAGES", mine + theirs, **rig.signed("cesga"))


@pytest.mark.parametrize("number", [0, 9, 1000, -1])
def test_no_other_method_passes(rig, number):
    body = RegisterNodeFleetRequest(public_key=rig.public_key("cesga")).SerializeToString()
    with pytest.raises(IdentityError, match="may not pass"):
        rig.site.tunnel(number, body, **rig.signed("cesga"))
    assert rig.forwarded == []


@pytest.mark.parametrize("name", ["REGISTER_NODE", "UNREGISTER_NODE", "GET_RUN", "GET_FAB"])
def test_flowers_other_fleet_methods_have_no_number(name):
    assert name not in pb.FleetMethod.keys()  # noqa: SIM118, an enum wrapper is no container


def test_a_reply_must_be_the_nodes_own_and_answer_something(rig):
    for metadata in (
        Metadata(src_node_id=THEIRS, reply_to_message_id="asked"),
        Metadata(src_node_id=1, reply_to_message_id=""),
        Metadata(src_node_id=MINE, reply_to_message_id="", dst_node_id=THEIRS),
    ):
        own = Message(metadata=Metadata(src_node_id=MINE, reply_to_message_id="asked"))
        body = PushMessagesRequest(
            node=Node(node_id=MINE), messages_list=[own, Message(metadata=metadata)]
        ).SerializeToString()
        with pytest.raises(IdentityError):
            rig.site.tunnel("PUSH_MESSAGES", body, **rig.signed("cesga"))
    assert rig.forwarded == []


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, MAX_BODY_BYTES + 2000])
def test_a_large_body_is_refused_by_us(rig, size):
    with pytest.raises(ProtocolError) as refused:
        rig.site.tunnel("PULL_MESSAGES", bytes(size), **rig.signed("cesga"))
    assert str(size) in refused.value.diagnostic


def test_a_huge_body_is_refused_by_grpc(rig):
    with pytest.raises(EnvironmentFailedError, match="reached") as refused:
        rig.site.tunnel("PULL_MESSAGES", bytes(9 * 1024 * 1024), **rig.signed("cesga"))
    assert "RESOURCE_EXHAUSTED" in refused.value.diagnostic
    assert rig.forwarded == []


@pytest.mark.parametrize(
    "change",
    [
        {"timestamp": "2026-11-21T02:00:00+00:00\r\nx-evil: 1"},
        {"timestamp": ""},
        {"timestamp": "ü" * 20},
        {"timestamp": "1" * 100},
        {"signature": bytes(1000)},
    ],
)
def test_nothing_odd_becomes_a_header(rig, change):
    body = PullMessagesRequest(node=Node(node_id=MINE)).SerializeToString()
    with pytest.raises(ProtocolError):
        rig.site.tunnel("PULL_MESSAGES", body, **rig.signed("cesga") | change)
    assert rig.forwarded == []


def test_garbage_is_refused(rig):
    with pytest.raises(ProtocolError):
        rig.site.tunnel("PULL_MESSAGES", b"\xff\xff\xff", **rig.signed("cesga"))


def push(rig, asked, session, objects, *, status=200):
    body = requests(rig, MINE, "cesga")["PUSH_MESSAGES"]
    body.messages_list[0].metadata.reply_to_message_id = asked
    reply = PushMessagesResponse(session_id=session, objects_to_push=objects)
    rig.answer = lambda method, body: (status, reply.SerializeToString())
    rig.site.tunnel("PUSH_MESSAGES", body.SerializeToString(), **rig.signed("cesga"))


def push_object(rig, session, object_id, *, stored=True, status=200):
    body = PushObjectRequest(
        node=Node(node_id=MINE), session_id=session, object_id=object_id, object_content=b"x"
    )
    rig.answer = lambda method, body: (
        status,
        PushObjectResponse(stored=stored).SerializeToString(),
    )
    rig.site.tunnel("PUSH_OBJECT", body.SerializeToString(), **rig.signed("cesga"))


def test_the_serverapp_hears_of_a_reply_once_and_when_it_is_whole(rig):
    push(rig, "asked-1", "s1", ["a", "b"])
    push_object(rig, "s1", "a")
    push_object(rig, "s1", "a")
    push_object(rig, "s1", "b", stored=False)
    push_object(rig, "s1", "b", status=503)
    push_object(rig, "another", "b")
    assert rig.ear.heard == []
    push_object(rig, "s1", "b")
    assert rig.ear.heard == [("replied", "asked-1")]
    push_object(rig, "s1", "b")
    assert rig.ear.heard == [("replied", "asked-1")]


def test_a_reply_without_new_objects_is_whole_at_once(rig):
    push(rig, "asked-1", "s1", [], status=500)
    assert rig.ear.heard == []
    push(rig, "asked-1", "s1", [])
    assert rig.ear.heard == [("replied", "asked-1")]


def test_replies_left_unfinished_do_not_pile_up(rig):
    for i in range(50):
        push(rig, f"asked-{i}", f"s{i}", ["a"])
    for i in range(50):
        push_object(rig, f"s{i}", "a")
    assert rig.ear.heard == [("replied", f"asked-{i}") for i in range(42, 50)]


def test_tunnel_bytes_are_counted(rig):
    body = PullMessagesRequest(node=Node(node_id=MINE)).SerializeToString()
    rig.answer = lambda method, body: (200, b"12345")
    rig.site.tunnel("PULL_MESSAGES", body, **rig.signed("cesga"))
    assert rig.gateway.traffic() == {"cesga": {"down": 5, "up": len(body)}}
