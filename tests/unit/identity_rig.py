"""A founded consortium in a folder, its gateway, and invitations: the real parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from fedfactory.contracts.codec import to_json
from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.gateway import Gateway
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.coordinator.membership.consortium import Consortium, coordinator_identity
from fedfactory.coordinator.membership.founding import make_consortium
from fedfactory.coordinator.membership.registrar import Registrar
from fedfactory.wire.membership import Invitation, InviteRequest

PASSPHRASE = b"correct horse battery"
MONTH = timedelta(days=30)


class NoDesk:
    """Nobody operates anything in these tests."""

    def __getattr__(self, name: str) -> Any:
        def closed(*_: object) -> Any:
            raise EnvironmentFailedError("there is no desk")

        return closed


def found(folder: Path, *, gateway: str = "127.0.0.1:0", operator: str = "ana") -> Consortium:
    return make_consortium(
        folder / "home",
        name="alliance",
        root_key=folder / "root.key",
        passphrase=PASSPHRASE,
        hosts=(),
        gateway=gateway,
        operator=operator,
        operator_folder=folder / "operator",
    )


class Seat:
    """A coordinator as far as identities go: registry, registrar and gateway of a consortium."""

    def __init__(self, consortium: Consortium, lifetime: timedelta = MONTH) -> None:
        self.consortium = consortium
        self.registry = consortium.registry()
        self.registrar = Registrar(consortium, self.registry, consortium.issuer(), lifetime)
        self.gateway = Gateway(
            identity=lambda: coordinator_identity(consortium, MONTH),
            store=BlobStore(consortium.home / "blobs"),
            standing=self.registry.standing,
            revocations=self.registry.operator_revocations,
            desk=NoDesk(),  # type: ignore[arg-type]
            registrar=self.registrar,
            limits=GatewayLimits(max_model_bytes=1),
        )
        self.address = f"127.0.0.1:{self.gateway.start('127.0.0.1', 0)}"

    def invite(self, name: str, role: str = "site", lifetime_s: float = 600) -> Invitation:
        wanted = InviteRequest(role=role, name=name, lifetime_s=lifetime_s)
        return self.registrar.invite(wanted, by="ana", gateway=self.address)

    def invitation_file(self, path: Path, name: str, role: str = "site") -> Path:
        path.write_text(to_json(self.invite(name, role)))
        return path

    def close(self) -> None:
        self.gateway.stop()
        self.registry.close()


@contextmanager
def seat(folder: Path, lifetime: timedelta = MONTH) -> Iterator[Seat]:
    folder.mkdir(parents=True, exist_ok=True)
    opened = Seat(found(folder), lifetime)
    try:
        yield opened
    finally:
        opened.close()
