"""Everything private of Flower's that the coordinator uses. Contract tests pin it.

Decides nothing: it names Flower's programs and their environment, speaks its Control API,
forwards Fleet calls to fixed paths on loopback, and builds the app archive. What takes long to
import is imported where it is used: SuperLink is started first, and the rest while it starts.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.contracts.orders import MESSAGE_RECORD

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid

CALL_TIMEOUT_S: Final = 20.0
HEALTH_TIMEOUT_S: Final = 3.0
MAX_CONNECTIONS: Final = 64
# Fleet calls that may pass the gateway, and the one path each goes to (superlink/routers/fleet).
FLEET_PATHS: Final[Mapping[str, str]] = {
    "ACTIVATE_NODE": "/v1/fleet/activate-node",
    "DEACTIVATE_NODE": "/v1/fleet/deactivate-node",
    "SEND_NODE_HEARTBEAT": "/v1/fleet/send-node-heartbeat",
    "PULL_MESSAGES": "/v1/fleet/pull-messages",
    "PUSH_MESSAGES": "/v1/fleet/push-messages",
    "PUSH_OBJECT": "/v1/fleet/push-object",
    "PULL_OBJECT": "/v1/fleet/pull-object",
    "CONFIRM_MESSAGE_RECEIVED": "/v1/fleet/confirm-message-received",
}
APP_KEYS: Final = ("fedfactory-link", "fedfactory-settings")


def assume_app_identity() -> None:
    """Let `Message(...)` be built outside an app process (simulation and tests)."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def superlink_arguments(*, port: int, tls: Path, secret: Path) -> list[str]:
    """`flower-superlink` on loopback, in memory, with TLS and node authentication."""
    return [
        "flower-superlink",
        *("--host", "127.0.0.1", "--port", str(port)),
        *(
            "--ssl-certfile",
            str(tls / "superlink.pem"),
            "--ssl-keyfile",
            str(tls / "superlink.key"),
        ),
        *("--ssl-ca-certfile", str(tls / "ca.pem")),
        *("--isolation", "process", "--enable-supernode-auth"),
        *("--superexec-auth-secret-file", str(secret)),
        "--disable-runtime-dependency-installation",
    ]


def superexec_arguments(*, port: int, tls: Path, secret: Path, parent_pid: int) -> list[str]:
    """`flower-superexec`, which starts the ServerApp process of each run."""
    return [
        "flower-superexec",
        *("--runtime-api-address", f"127.0.0.1:{port}", "--root-certificates", str(tls / "ca.pem")),
        *("--superexec-auth-secret-file", str(secret), "--parent-pid", str(parent_pid)),
    ]


def flower_environment(home: Path) -> dict[str, str]:
    """Environment that keeps Flower's programs offline, quiet, quick to notice tasks."""
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    }


class Post:
    """A run's mail, by Flower's Grid: orders out as the Grid sends them, replies in by less.

    Of a reply's three objects (message, content, record) the record alone is fetched: the message
    comes with the answer that names them, and each object costs SuperLink a request.
    """

    def __init__(self, grid: Grid, max_time_s: float) -> None:
        from flwr.superlink.grid import HttpGrid

        assert isinstance(grid, HttpGrid)
        # Its calls fail after so many seconds without SuperLink; they do not retry for ever.
        grid._retry_invoker.max_time = max_time_s  # noqa: SLF001
        self._grid = grid

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; return their ids, None for what Flower did not take."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages that are there; each is given once.

        One whose record is not there any more is given as Flower's error.
        """
        from flwr.common.serde import message_from_proto
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest

        client, node = self._grid._runtime_client, self._grid.node  # noqa: SLF001
        pulled = client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        replies = []
        for given, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
            message = message_from_proto(given)
            if message.has_content() and len(tree.children) == 1 == len(tree.children[0].children):
                message = self._with_record(message, tree.children[0].children[0].object_id)
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=node,
                    run_id=message.metadata.run_id,
                    message_object_id=message.metadata.message_id,
                )
            )
            replies.append(message)
        return replies

    def _with_record(self, message: Message, object_id: str) -> Message:
        from flwr.app import ConfigRecord, Error
        from flwr.app.message.message import make_message
        from flwr.common.constant import ErrorCode
        from flwr.proto.message_pb2 import PullObjectRequest

        metadata = message.metadata
        wanted = PullObjectRequest(
            node=self._grid.node, run_id=metadata.run_id, object_id=object_id
        )
        found = self._grid._runtime_client.PullObject(wanted)  # noqa: SLF001
        if not found.object_available:
            return make_message(metadata, error=Error(code=ErrorCode.MESSAGE_UNAVAILABLE))
        with contextlib.suppress(Exception):  # Flower's, on bytes of a site's choosing
            message.content[MESSAGE_RECORD] = ConfigRecord.inflate(found.object_content)
        return message


class SuperLinkGoneError(EnvironmentFailedError):
    """SuperLink does not answer, or not as it should."""


class SuperLinkClient:
    """The coordinator's own calls to SuperLink on loopback: Control API and Fleet forwarding.

    No call waits longer than CALL_TIMEOUT_S, so a frozen SuperLink holds up nobody for ever. Those
    of the Control API raise SuperLinkGoneError.
    """

    def __init__(self, *, port: int, authority: Path) -> None:
        # Proxies named in the environment must never see loopback traffic.
        self._http = httpx.Client(
            base_url=f"https://127.0.0.1:{port}",
            verify=ssl.create_default_context(cafile=str(authority)),
            trust_env=False,
            timeout=CALL_TIMEOUT_S,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        )

    def is_ready(self) -> bool:
        """Whether SuperLink answers."""
        try:
            reply = self._http.get("/health", timeout=HEALTH_TIMEOUT_S)
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: closed meanwhile
            return False
        return reply.status_code < httpx.codes.INTERNAL_SERVER_ERROR

    def register_node(self, public_key: bytes, name: str) -> int:
        """Register a site's node key (PEM); return its node id."""
        from flwr.proto.control_pb2 import RegisterNodeRequest, RegisterNodeResponse

        request = RegisterNodeRequest(public_key=public_key, name=name)
        reply = self._control("/v1/control/register-node", request.SerializeToString())
        return int(RegisterNodeResponse.FromString(reply).node_id)

    def start_run(self, link: Path, settings: Path) -> int:
        """Start a Flower run of our thin app; return Flower's run id."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest, StartRunResponse
        from flwr.supercore.fab import Fab

        content, digest = build_app()
        request = StartRunRequest(
            fab=fab_to_proto(Fab(digest, content, {})),
            override_config=user_config_to_proto(
                dict(zip(APP_KEYS, (str(link), str(settings)), strict=True))
            ),
        )
        reply = self._control("/v1/control/start-run", request.SerializeToString())
        return int(StartRunResponse.FromString(reply).run_id)

    def unregister_node(self, node_id: int) -> None:
        """Let a node's key mean nothing any more; a node that is not known is none already."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        body = UnregisterNodeRequest(node_id=node_id).SerializeToString()
        self._control("/v1/control/unregister-node", body, missing_ok=True)

    def stop_run(self, flower_run: int) -> None:
        """End a Flower run, so that no ServerApp is started for it any more."""
        from flwr.proto.control_pb2 import StopRunRequest

        body = StopRunRequest(run_id=flower_run).SerializeToString()
        self._control("/v1/control/stop-run", body, missing_ok=True)

    def why_ended(self, flower_run: int) -> str | None:
        """Return what Flower says of a run that is over (may be empty); None while it is not."""
        from flwr.proto.control_pb2 import ListRunsRequest, ListRunsResponse

        body = ListRunsRequest(run_id=flower_run).SerializeToString()
        reply = ListRunsResponse.FromString(self._control("/v1/control/list-runs", body))
        status = reply.run_dict[flower_run].status
        return str(status.details) if status.status == "finished" else None

    def forward(
        self, method: str, public_key: bytes, timestamp: str, signature: bytes, body: bytes
    ) -> tuple[int, bytes]:
        """Post one Fleet call to its fixed path with exactly the headers it needs."""
        try:
            reply = self._http.post(
                FLEET_PATHS[method],
                content=body,
                headers={
                    "content-type": PROTOBUF_MEDIA_TYPE,
                    "accept": PROTOBUF_MEDIA_TYPE,
                    FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key).decode(),
                    TIMESTAMP_HEADER: timestamp,
                    FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
                    **_version_headers(),
                },
            )
        except (httpx.HTTPError, RuntimeError):  # RuntimeError: closed meanwhile
            return httpx.codes.SERVICE_UNAVAILABLE.value, b""
        return reply.status_code, reply.content

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _control(self, path: str, body: bytes, *, missing_ok: bool = False) -> bytes:
        headers = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            **_version_headers(),
        }
        try:
            reply = self._http.post(path, content=body, headers=headers)
        except (httpx.HTTPError, RuntimeError) as error:
            raise SuperLinkGoneError(diagnostic=f"{path}: {error}") from error
        if not reply.is_success and not (reply.is_client_error and missing_ok):
            raise SuperLinkGoneError(diagnostic=f"{path}: HTTP {reply.status_code}")
        return reply.content


@functools.cache
def _version_headers() -> dict[str, str]:
    from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

    metadata = RuntimeVersionMetadata.from_local_component("SuperNode")
    return {str(key): str(value) for key, value in metadata.as_metadata()}


_PYPROJECT = """\
[project]
name = "fedfactory-run"
version = "1.0.0"
description = "Starts fedfactory's round machine; holds no logic of its own."
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.43"]

[tool.flwr.app]
publisher = "fedfactory"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["fedfactory_run.py", "LICENSE"]

[tool.flwr.app.components]
serverapp = "fedfactory_run:app"
clientapp = "fedfactory_run:no_clientapp"

[tool.flwr.app.config]
fedfactory-link = ""
fedfactory-settings = ""
"""
_APP = """\
from fedfactory.coordinator.running.serverapp import app

no_clientapp = None  # sites run their own agent and never load this archive
"""


@functools.cache
def build_app() -> tuple[bytes, str]:
    """Build the app archive in memory; return its bytes and SHA-256 (hex)."""
    from flwr.cli.build import build_fab_from_files

    content, _ = build_fab_from_files(
        {
            "pyproject.toml": _PYPROJECT.encode(),
            "LICENSE": b"Apache-2.0\n",
            "fedfactory_run.py": _APP.encode(),
        }
    )
    return content, hashlib.sha256(content).hexdigest()
