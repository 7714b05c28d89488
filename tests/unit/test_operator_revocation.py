"""The coordinator's part in revoking an operator: what is taken, kept, and told to sites in order."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, IdentityError, UsageError
from fedfactory.contracts.revocations import OperatorRevocation, SignedRevocation
from fedfactory.coordinator.desk.desk import Desk
from fedfactory.coordinator.gateway.doorbells import Doorbells
from fedfactory.coordinator.membership.registry import Registry
from fedfactory.coordinator.membership.registry_rows import Issued
from fedfactory.coordinator.membership.registry_schema import SCHEMA_VERSION
from fedfactory.identity.facts import CertificateFacts
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import Signer, fingerprint, new_signing_key
from fedfactory.wire.membership import RevokeRequest
from tests.unit.test_registry import OF_VERSION_2

SIGNERS = {name: Signer(new_signing_key()) for name in ("ana", "bob", "cy")}
PEERS = {name: Peer(role=Role.OPERATOR, name=name) for name in SIGNERS}


def signed(by: str, operator: str, /, **changed: Any) -> SignedRevocation:
    told = OperatorRevocation(
        coordinator="hub",
        operator=operator,
        key=fingerprint(SIGNERS[operator].public_key),
        reason="left",
        at=time.time(),
    )
    told = replace(told, **changed)
    return SignedRevocation(revocation=told, signature=SIGNERS[by].sign(told))


def opened(path: Path) -> Registry:
    """Return a registry with three operators."""
    registry = Registry(path / "registry.sqlite")
    for number, (name, signer) in enumerate(SIGNERS.items()):
        facts = CertificateFacts(
            serial=f"{number}", not_after=time.time() + 1000, public_key=signer.public_key
        )
        registry.enlist(PEERS[name], Issued(facts=facts, root="root"))
    return registry


class Hub:
    """A real desk and registry; of the gateway, what is told and cut."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.told: list[str] = []
        self.cut: list[Peer] = []
        self.desk = Desk(
            SimpleNamespace(name="hub"),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            registry=registry,
            registrar=None,  # type: ignore[arg-type]
            signer=SIGNERS["ana"],
            wake=threading.Event(),
        )
        self.desk.gateway = SimpleNamespace(  # type: ignore[assignment]
            cut=self.cut.append, tell_revocation=lambda text: self.told.append(text) or 3
        )

    def revoke(self, by: str, name: str, proof: SignedRevocation | None, /, **changed: str) -> str:
        wanted = {"role": "operator", "name": name, "reason": "left", **changed}
        return self.desk.revoke(PEERS[by], RevokeRequest(**wanted, signed=proof)).message


@pytest.fixture
def hub(tmp_path: Path):
    with opened(tmp_path) as registry:
        yield Hub(registry)


def test_it_is_taken_kept_and_told(hub: Hub) -> None:
    proof = signed("ana", "bob")
    assert "3 connected sites are told" in hub.revoke("ana", "bob", proof)
    assert hub.told == [to_json(proof)]
    assert hub.registry.operator_revocations() == (to_json(proof),)
    assert hub.cut == [PEERS["bob"]]
    assert "bob" not in hub.registry.operators()


@pytest.mark.parametrize(
    ("proof", "changed", "error"),
    [
        (None, {}, UsageError),
        (signed("cy", "bob"), {}, IdentityError),
        (signed("bob", "bob"), {}, IdentityError),
        (signed("ana", "cy"), {}, UsageError),
        (signed("ana", "bob", coordinator="other"), {}, UsageError),
        (signed("ana", "bob", reason="another"), {}, UsageError),
        (signed("ana", "bob", at=1.0), {}, UsageError),
        (signed("ana", "bob", key="sha256:" + "0" * 64), {}, UsageError),
        (signed("ana", "bob"), {"role": "viewer"}, UsageError),
        (signed("ana", "bob"), {"name": "nobody"}, UsageError),
    ],
)
def test_what_does_not_say_what_is_wanted_is_refused(
    hub: Hub, proof: SignedRevocation | None, changed: dict[str, str], error: type[FedfactoryError]
) -> None:
    with pytest.raises(error):
        hub.revoke("ana", "bob", proof, **changed)
    assert (hub.told, hub.cut, hub.registry.operator_revocations()) == ([], [], ())
    assert set(hub.registry.operators()) == set(SIGNERS)


def test_they_are_told_in_the_order_in_which_they_were_made(hub: Hub, tmp_path: Path) -> None:
    proofs = [signed("ana", "bob"), signed("ana", "cy")]
    for proof in proofs:
        hub.revoke("ana", proof.revocation.operator, proof)
    with Registry(tmp_path / "registry.sqlite") as again:
        told = [from_json(SignedRevocation, text) for text in again.operator_revocations()]
    assert told == proofs
    bells = Doorbells()
    bell = bells.open("cesga")
    for text in hub.registry.operator_revocations():
        assert bells.revoke(text.encode()) == 1
    rings = bell.rings()
    assert [next(rings).revocation.decode() for _ in proofs] == [to_json(p) for p in proofs]
    bells.hang_up_all()


def test_a_registry_of_the_version_before_goes_on(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = tmp_path / "registry.sqlite"
    with sqlite3.connect(path) as database:
        database.executescript(OF_VERSION_2)
        database.execute("DROP TABLE operator_revocations")
        database.execute("PRAGMA user_version = 1")
    database.close()
    with Registry(path) as registry:
        assert set(registry.operators()) == set(SIGNERS)
        assert registry.operator_revocations() == ()
        registry.revoke(PEERS["bob"], by="ana", reason="left", signed=signed("ana", "bob"))
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        database.execute("UPDATE operator_revocations SET signed = 'half'")
    database.close()
    with pytest.raises(UsageError, match="signed: expected a signed revocation"):
        Registry(path)
