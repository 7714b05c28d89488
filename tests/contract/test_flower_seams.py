"""What we use of Flower's private modules, against the installed version and a real SuperLink."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PullObjectResponse

from fedfactory.coordinator.flower_seam import FLEET_PATHS, build_app
from fedfactory.coordinator.superlink import SuperLink
from site_agents.agent import NODE_ID_FILE, come_online
from site_agents.config import AGENT_FILE, load_agent_config
from site_agents.flower_seam import FleetNode, FleetUnavailableError

PEM = serialization.Encoding.PEM


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    home: Path = tmp_path_factory.mktemp("superlink")
    logs = home / "logs"
    logs.mkdir()
    found = SuperLink(home, logs)
    try:
        found.wait_ready()
        yield found
    finally:
        found.stop()


def _key() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def _node(superlink: SuperLink, private: bytes) -> FleetNode:
    def tunnel(
        method: str, body: bytes, public_key: bytes, timestamp: str, signature: bytes
    ) -> tuple[int, bytes]:
        return superlink.client.forward(method, public_key, timestamp, signature, body)

    return FleetNode(tunnel, private)


def test_a_registered_node_lives_through_its_calls(superlink: SuperLink) -> None:
    private, public = _key()
    node_id = superlink.client.register_node(public, "a")
    node = _node(superlink, private)
    assert node.activate() == node_id
    assert node.heartbeat()
    assert node.pull() is None
    assert node.activate() == node_id  # still counted as online: 412, and the id is kept
    node.deactivate()
    assert node.activate() == node_id
    node.close()


def test_a_node_that_goes_on_after_a_restart_says_at_once_that_it_lives(
    superlink: SuperLink,
) -> None:
    """SuperLink keeps no reply of a node whose last heartbeat is too old."""
    private, public = _key()
    node_id = superlink.client.register_node(public, "b")
    killed = _node(superlink, private)
    killed.activate()
    calls: list[str] = []

    def tunnel(method: str, *call: Any) -> tuple[int, bytes]:
        calls.append(method)
        body, *signed = call
        return superlink.client.forward(method, *signed, body)

    node = FleetNode(tunnel, private)
    node.resume(node_id)
    assert node.activate() == node_id
    assert calls == ["ACTIVATE_NODE", "SEND_NODE_HEARTBEAT"]
    node.close()
    killed.close()


@pytest.mark.parametrize("left", [None, "", "12x"])
def test_a_node_id_that_a_crash_tore_is_asked_for_anew(
    superlink: SuperLink, tmp_path: Path, left: str | None
) -> None:
    (tmp_path / AGENT_FILE).write_text("site: lumi\ngateway: localhost:1\n")
    if left is not None:
        (tmp_path / NODE_ID_FILE).write_text(left)
    private, public = _key()
    node_id = superlink.client.register_node(public, f"torn {left}")
    node = _node(superlink, private)
    come_online(load_agent_config(tmp_path, []), node)
    assert (tmp_path / NODE_ID_FILE).read_text() == str(node_id)
    node.close()


def test_an_unregistered_key_is_refused(superlink: SuperLink) -> None:
    private, _ = _key()
    node = _node(superlink, private)
    with pytest.raises(FleetUnavailableError):
        node.activate()
    node.close()


def test_every_fleet_path_exists(superlink: SuperLink) -> None:
    _, public = _key()
    for method in FLEET_PATHS:
        status, _ = superlink.client.forward(method, public, "2026-01-01T00:00:00+00:00", b"", b"")
        assert status not in (404, 405, 415), method


def test_only_fleet_paths_are_in_the_table() -> None:
    assert all(path.startswith("/v1/fleet/") for path in FLEET_PATHS.values())
    assert "register-node" not in " ".join(FLEET_PATHS.values())


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_the_app_archive_holds_no_logic() -> None:
    content, digest = build_app()
    assert build_app()[1] == digest
    with zipfile.ZipFile(BytesIO(content)) as archive:
        code = archive.read("fedfactory_run.py").decode()
    assert [line for line in code.splitlines() if line and not line.startswith("#")] == [
        "from fedfactory.coordinator.serverapp import app",
        "no_clientapp = None  # sites run their own agent and never load this archive",
    ]


class _Hostile:
    """A SuperLink that gives a message whose parts are what it likes."""

    def __init__(self, parts: int, content: bytes) -> None:
        metadata = Metadata(
            message_id="m", run_id=1, dst_node_id=1, message_type="train", group_id="1", ttl=60.0
        )
        self.tree = ObjectTree(
            object_id="m", children=[ObjectTree(object_id=f"p{n}") for n in range(parts - 1)]
        )
        self.reply = PullMessagesResponse(
            messages_list=[Message(metadata=metadata)],
            message_object_trees=[self.tree],
        )
        self._content = content
        self.pulled = 0
        self.confirmed = 0

    def PullMessages(self, request: object) -> PullMessagesResponse:  # noqa: N802
        return self.reply

    def PullObject(self, request: object) -> PullObjectResponse:  # noqa: N802
        self.pulled += 1
        return PullObjectResponse(
            object_found=True, object_available=True, object_content=self._content
        )

    def ConfirmMessageReceived(self, request: object) -> None:  # noqa: N802
        self.confirmed += 1


@pytest.mark.parametrize(
    ("parts", "content", "pulled"),
    [(3, b"", 3), (3, b"ConfigRecord 3 0\x00abc", 3), (3, b"Message 9 9\x00", 3), (5000, b"x", 0)],
)
def test_a_message_that_is_none_is_confirmed_and_means_nothing(
    parts: int, content: bytes, pulled: int
) -> None:
    """The agent lives on, takes no more memory than an order, and is not given it again."""
    node = FleetNode(lambda *_: (500, b""), _key()[0])
    hostile = _Hostile(parts, content)
    node._client = hostile
    incoming = node.pull()
    assert incoming is not None
    assert incoming.text == ""
    assert (hostile.pulled, hostile.confirmed) == (pulled, 1)
