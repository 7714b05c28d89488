"""What we use of Flower's private modules, against the installed version and a real SuperLink."""

from __future__ import annotations

import os
import signal
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Error, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.superlink.grid import HttpGrid

from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD
from fedfactory.coordinator import flower_seam
from fedfactory.coordinator import superlink as superlink_module
from fedfactory.coordinator.flower_seam import (
    FLEET_PATHS,
    Post,
    SuperLinkClient,
    SuperLinkGoneError,
    build_app,
)
from fedfactory.coordinator.superlink import SuperLink
from site_agents.config import AGENT_FILE, load_agent_config
from site_agents.flower_seam import FleetNode, FleetUnavailableError, Incoming
from tests.patience import prompt, until

PEM = serialization.Encoding.PEM
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy", "SSL_CERT_FILE"])
def test_a_node_does_not_look_at_the_users_proxies_and_certificates(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "socks5://127.0.0.1:9")
    asked: list[str] = []

    def tunnel(method: str, *_: object) -> tuple[int, bytes]:
        asked.append(method)
        return 200, PullMessagesResponse().SerializeToString()

    with closing(FleetNode(tunnel, _key()[0])) as node:
        assert node.pull() is None
    assert asked == ["PULL_MESSAGES"]


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLink]:
    with running(tmp_path_factory.mktemp("superlink")) as found:
        yield found


@contextmanager
def running(home: Path) -> Iterator[SuperLink]:
    logs = home / "logs"
    logs.mkdir()
    found = SuperLink(home, logs)
    try:
        look_after(found, lambda: found.client is not None)
        yield found
    finally:
        found.stop()


def look_after(superlink: SuperLink, holds: Callable[[], object], seconds: float = 150) -> None:
    """Tick as the daemon does, until something holds."""

    def look() -> object:
        superlink.tick(time.monotonic())
        return holds()

    until(look, seconds)


def client_of(superlink: SuperLink) -> SuperLinkClient:
    assert superlink.client is not None
    return superlink.client


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
        return superlink.forward(method, public_key, timestamp, signature, body)

    return FleetNode(tunnel, private)


def test_a_registered_node_lives_through_its_calls(superlink: SuperLink) -> None:
    private, public = _key()
    node_id = client_of(superlink).register_node(public, "a")
    node = _node(superlink, private)
    assert node.activate() == node_id
    assert node.heartbeat()
    assert node.pull() is None
    assert node.activate() == node_id  # still counted as online: 412, and the id is kept
    node.deactivate()
    assert node.activate() == node_id
    node.close()


def test_an_answer_without_a_message_has_no_bytes(superlink: SuperLink) -> None:
    """The gateway reads it so: the site has looked, and it is another's turn."""
    private, public = _key()
    client_of(superlink).register_node(public, "idle")
    answers: list[tuple[int, bytes]] = []

    def tunnel(method: str, body: bytes, *signed: Any) -> tuple[int, bytes]:
        answers.append(superlink.forward(method, *signed, body))
        return answers[-1]

    node = FleetNode(tunnel, private)
    node.activate()
    assert node.pull() is None
    assert answers[-1] == (200, b"")
    node.close()


def test_a_node_that_goes_on_after_a_restart_says_at_once_that_it_lives(
    superlink: SuperLink,
) -> None:
    """SuperLink keeps no reply of a node whose last heartbeat is too old."""
    private, public = _key()
    node_id = client_of(superlink).register_node(public, "b")
    killed = _node(superlink, private)
    killed.activate()
    calls: list[str] = []

    def tunnel(method: str, *call: Any) -> tuple[int, bytes]:
        calls.append(method)
        body, *signed = call
        return superlink.forward(method, *signed, body)

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
    from site_agents.line import NODE_ID_FILE, come_online

    (tmp_path / AGENT_FILE).write_text("site: lumi\ngateway: localhost:1\n")
    if left is not None:
        (tmp_path / NODE_ID_FILE).write_text(left)
    private, public = _key()
    node_id = client_of(superlink).register_node(public, f"torn {left}")
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


def test_a_clock_that_is_off_is_told_of(
    superlink: SuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = _key()
    client_of(superlink).register_node(public, "ahead")
    node = _node(superlink, private)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=1)

    monkeypatch.setattr("site_agents.flower_seam.datetime", Ahead)
    with pytest.raises(FleetUnavailableError, match="clock may be off: site-agent doctor"):
        node.activate()
    monkeypatch.undo()
    assert node.activate()
    node.close()


def test_a_node_that_was_taken_away_is_no_node(superlink: SuperLink) -> None:
    private, public = _key()
    client = client_of(superlink)
    node_id = client.register_node(public, "revoked")
    node = _node(superlink, private)
    node.activate()
    client.unregister_node(node_id)
    client.unregister_node(node_id)  # taken away already: nothing to say
    with pytest.raises(FleetUnavailableError):
        node.activate()
    node.close()
    with pytest.raises(SuperLinkGoneError):  # why Roll.add replaces SuperLink then
        client.register_node(public, "revoked")


def test_a_run_whose_server_app_fails_says_why(superlink: SuperLink, tmp_path: Path) -> None:
    client = client_of(superlink)
    flower_run = client.start_run(tmp_path / "link.sock", tmp_path / "nowhere.json")
    assert client.why_ended(flower_run) is None
    look_after(superlink, lambda: client.why_ended(flower_run) is not None)
    assert "nowhere.json" in (client.why_ended(flower_run) or "")
    client.stop_run(flower_run)  # it is over: nothing to say


def test_a_run_that_is_stopped_before_its_start_is_never_started(
    superlink: SuperLink, tmp_path: Path
) -> None:
    client = client_of(superlink)
    assert not superlink.is_starter_stopped
    os.kill(superlink.pids["superexec"], signal.SIGSTOP)
    try:
        look_after(superlink, lambda: superlink.is_starter_stopped)  # once the kernel got to it
        flower_run = client.start_run(tmp_path / "link.sock", tmp_path / "nowhere.json")
        client.stop_run(flower_run)
        assert client.why_ended(flower_run) is not None
    finally:
        os.kill(superlink.pids["superexec"], signal.SIGCONT)


def test_several_runs_have_a_server_app_each_at_the_same_time(
    superlink: SuperLink, tmp_path: Path
) -> None:
    """Each opens its settings, a pipe here: all are held open before the first is let go on."""
    client = client_of(superlink)
    pipes = [tmp_path / f"settings-{n}.json" for n in range(3)]
    for pipe in pipes:
        os.mkfifo(pipe)
    runs = [client.start_run(tmp_path / "link.sock", pipe) for pipe in pipes]
    handles: list[int] = []

    def held() -> bool:
        for pipe in pipes[len(handles) :]:
            try:
                handles.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:  # nobody reads yet
                return False
        return True

    look_after(superlink, held)
    assert [client.why_ended(flower_run) for flower_run in runs] == [None] * 3
    for handle in handles:
        os.close(handle)
    look_after(superlink, lambda: all(client.why_ended(run) is not None for run in runs))


def test_what_dies_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path) as superlink:
        before = superlink.pids
        os.kill(before["superexec"], signal.SIGKILL)
        look_after(superlink, lambda: superlink.epoch == 2)
        assert superlink.generation == 1
        assert superlink.pids["superlink"] == before["superlink"]
        os.kill(before["superlink"], signal.SIGKILL)
        look_after(superlink, lambda: superlink.generation == 2 and superlink.client)
        assert set(superlink.pids.values()).isdisjoint(before.values())
        assert client_of(superlink).register_node(_key()[1], "again")


def test_a_frozen_superlink_holds_up_nobody_for_long_and_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flower_seam, "CALL_TIMEOUT_S", 1.0)
    monkeypatch.setattr(flower_seam, "HEALTH_TIMEOUT_S", 0.5)
    monkeypatch.setattr("fedfactory.coordinator.superlink.FROZEN_S", 4.0)
    with running(tmp_path) as superlink:
        client = client_of(superlink)
        os.kill(superlink.pids["superlink"], signal.SIGSTOP)
        with prompt(10):
            with pytest.raises(SuperLinkGoneError):
                client.register_node(_key()[1], "held up")
            status, _ = superlink.forward(
                "PULL_MESSAGES", b"", "2026-01-01T00:00:00+00:00", b"", b""
            )
            assert status == 503
        look_after(superlink, lambda: superlink.generation == 2 and superlink.client)


def test_a_port_that_another_took_is_not_insisted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [int(taken.getsockname()[1])]
        free_port = superlink_module._free_port
        monkeypatch.setattr(
            superlink_module, "_free_port", lambda: ports.pop() if ports else free_port()
        )
        with running(tmp_path) as superlink:
            assert superlink.generation == 2


def test_every_fleet_path_exists(superlink: SuperLink) -> None:
    _, public = _key()
    for method in FLEET_PATHS:
        status, _ = superlink.forward(method, public, "2026-01-01T00:00:00+00:00", b"", b"")
        assert status not in (404, 405, 415), method


def test_only_fleet_paths_are_in_the_table() -> None:
    assert all(path.startswith("/v1/fleet/") for path in FLEET_PATHS.values())
    assert "register-node" not in " ".join(FLEET_PATHS.values())


def test_the_app_archive_holds_no_logic() -> None:
    content, digest = build_app()
    assert build_app()[1] == digest
    with zipfile.ZipFile(BytesIO(content)) as archive:
        code = archive.read("fedfactory_run.py").decode()
    assert [line for line in code.splitlines() if line and not line.startswith("#")] == [
        "from fedfactory.coordinator.running.serverapp import app",
        "no_clientapp = None  # sites run their own agent and never load this archive",
    ]


class _Hostile:
    """A SuperLink that gives a message whose parts are what it likes."""

    def __init__(self, parts: int, content: bytes) -> None:
        metadata = Metadata(
            message_id="m", run_id=1, dst_node_id=1, message_type="train", group_id="1", ttl=60.0
        )
        self.tree = ObjectTree(
            object_id="m",
            children=[
                ObjectTree(
                    object_id="c",
                    children=[ObjectTree(object_id=f"r{n}") for n in range(parts - 2)],
                )
            ],
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
    [
        (3, b"", 1),
        (3, b"ConfigRecord 3 0\x00abc", 1),
        (3, ConfigRecord({"other": "words"}).deflate(), 1),
        (3, b"Message 9 9\x00", 1),
        (2, b"x", 0),
        (5000, b"x", 0),
    ],
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


class _Runtime:
    """A SuperLink with one reply, whose record's object is `content`; None: it is gone."""

    def __init__(self, reply: FlowerMessage, content: bytes | None) -> None:
        record = ObjectTree(object_id="r")
        tree = ObjectTree(object_id="m", children=[ObjectTree(object_id="c", children=[record])])
        self.reply = PullAppMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[tree],
        )
        self._content = content
        self.calls: list[str] = []

    def PullMessages(self, request: object) -> PullAppMessagesResponse:  # noqa: N802
        self.calls.append("messages")
        return self.reply

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802
        self.calls.append(request.object_id)
        there = self._content is not None
        return PullObjectResponse(
            object_found=there, object_available=there, object_content=self._content or b""
        )

    def ConfirmMessageReceived(self, request: object) -> None:  # noqa: N802
        self.calls.append("confirm")


def _pulled(reply: FlowerMessage, content: bytes | None) -> tuple[FlowerMessage, list[str]]:
    grid = HttpGrid(token="none")
    grid._client = runtime = _Runtime(reply, content)  # type: ignore[assignment]
    (message,) = Post(grid, 1.0).pull_messages(["order"])
    return message, runtime.calls


@pytest.fixture
def order() -> FlowerMessage:
    flower_seam.assume_app_identity()
    order = FlowerMessage(RecordDict({}), dst_node_id=7, message_type="train", ttl=60.0)
    order.metadata.__dict__["_message_id"] = "order"
    return order


def test_a_reply_is_pulled_with_one_object(order: FlowerMessage) -> None:
    record = ConfigRecord({MESSAGE_FIELD: "done"})
    message, calls = _pulled(FlowerMessage(RecordDict({}), reply_to=order), record.deflate())
    assert message.metadata.reply_to_message_id == "order"
    assert message.content.config_records[MESSAGE_RECORD][MESSAGE_FIELD] == "done"
    assert calls == ["messages", "r", "confirm"]


def test_a_reply_whose_object_is_gone_is_an_error_of_flowers(order: FlowerMessage) -> None:
    message, calls = _pulled(FlowerMessage(RecordDict({}), reply_to=order), None)
    assert not message.has_content()
    assert message.metadata.reply_to_message_id == "order"
    assert calls == ["messages", "r", "confirm"]


def test_a_reply_that_is_none_of_ours_is_pulled_and_holds_nothing(order: FlowerMessage) -> None:
    message, _ = _pulled(FlowerMessage(RecordDict({}), reply_to=order), b"ConfigRecord 3 0\x00abc")
    assert message.has_content()
    assert MESSAGE_RECORD not in message.content


def test_an_error_of_flowers_is_given_as_it_is(order: FlowerMessage) -> None:
    message, calls = _pulled(FlowerMessage(Error(code=3), reply_to=order), None)
    assert message.error.code == 3
    assert calls == ["messages", "confirm"]


class _Torn:
    """A SuperLink that takes a reply's message, and whose line is cut before its first object."""

    def __init__(self) -> None:
        self.replies: list[str] = []
        self.objects: list[str] = []

    def PushMessages(self, request: PushMessagesRequest) -> PushMessagesResponse:  # noqa: N802
        self.replies.append(request.messages_list[0].metadata.message_id)
        tree = request.message_object_trees[0]
        return PushMessagesResponse(objects_to_push=[tree.object_id], session_id="s")

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:  # noqa: N802
        if len(self.replies) == 1:
            raise httpx.ConnectError("cut")
        self.objects.append(request.object_id)
        return PushObjectResponse(stored=True)


def test_a_reply_that_was_cut_is_sent_again_as_the_same(order: FlowerMessage) -> None:
    """SuperLink takes another reply to the same message for done, and keeps the torn one."""
    node, torn = FleetNode(lambda *_: (503, b""), _key()[0]), _Torn()
    node.resume(7)
    node._client = torn  # type: ignore[assignment]
    incoming = Incoming(text="an order", message=order)
    with pytest.raises(FleetUnavailableError):
        node.answer(incoming, "done")
    node.answer(incoming, "done")
    first, second = torn.replies
    assert first == second
    assert torn.objects == [first]
