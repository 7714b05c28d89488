"""What we use of Flower's private modules, against the installed version and a real SuperLink."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.coordinator.flower_seam import FLEET_PATHS, build_app
from fedfactory.coordinator.superlink import SuperLink
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
