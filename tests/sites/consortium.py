"""A real consortium on loopback: registry, registrar and gateway; no run is open.

And a real agent in a thread, which enrols, connects and renews by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from fedfactory.contracts.questions import Query, SignedQuery
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.gateway import Gateway
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.coordinator.membership.consortium import coordinator_identity
from fedfactory.coordinator.membership.founding import make_consortium
from fedfactory.coordinator.membership.registrar import Registrar
from fedfactory.identity.facts import CertificateFacts
from fedfactory.identity.operators import load_operator
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import Signer, fingerprint
from fedfactory.wire.membership import Invitation, InviteRequest
from site_agents.agent import Agent
from site_agents.assembly import open_books
from site_agents.config import load_agent_config
from site_agents.policy import DataRule, policy_text
from site_agents.setup import make_home
from site_agents.status import Status, read_status
from tests.contract.gateway_rig import Desk
from tests.patience import HANG_S, until
from tests.policy_orders import pin
from tests.sites.rig import Scripted

SITE = "cesga"


class Hub:
    """A consortium's coordinator, and its listener: `heard` is who came and went, and when.

    `callers` names who called, once for each call, also of those that were refused.
    """

    def __init__(self, folder: Path, lifetime: timedelta = timedelta(days=1)) -> None:
        self.folder = folder
        self.lifetime = lifetime
        self.consortium = make_consortium(
            folder / "hub", name="hub", root_key=folder / "root.pem", passphrase=b"a long passphrase",
            hosts=("127.0.0.1",), gateway="127.0.0.1:9443", operator="ana",
            operator_folder=folder / "ana",
        )  # fmt: skip
        self.registry = self.consortium.registry()
        self.operator = load_operator(folder / "ana")
        self.identity = coordinator_identity(self.consortium, timedelta(days=1))
        self.signer = Signer(self.identity.key_pem)
        self.heard: list[tuple[str, float]] = []
        self.callers: list[str] = []
        self.port = 0
        self.gateway: Gateway | None = None

    def start(self) -> None:
        registrar = Registrar(
            self.consortium, self.registry, self.consortium.issuer(), self.lifetime
        )
        self.registrar = registrar
        self.gateway = Gateway(
            identity=lambda: self.identity,
            store=BlobStore(self.folder / "blobs"),
            standing=self._standing,
            revocations=self.registry.operator_revocations,
            desk=Desk(),
            registrar=registrar,
            limits=GatewayLimits(max_model_bytes=10**6),
        )
        self.gateway.subscribe(self)
        self.port = self.gateway.start("127.0.0.1", self.port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        gateway, self.gateway = self.gateway, None
        if gateway is not None:
            gateway.stop()

    def close(self) -> None:
        self.stop()
        self.registry.close()

    def invitation(self) -> Invitation:
        wanted = InviteRequest(role="site", name=SITE, lifetime_s=600.0)
        return self.registrar.invite(wanted, by="ana", gateway=self.address)

    def revoke(self) -> None:
        peer = Peer(role=Role.SITE, name=SITE)
        self.registry.revoke(peer, by="ana", reason="left the consortium")
        self.gateway.cut(peer)

    def hang_up(self) -> None:
        """End the sites' doorbells, as a coordinator does that stops."""
        self.gateway._bells.hang_up_all()

    def ask(self, question: Query) -> Any:
        asked = SignedQuery(query=question, signature=self.signer.sign(question))
        return self.gateway.ask(SITE, asked, HANG_S)

    def came(self, site: str) -> None:
        self.heard.append(("came", time.monotonic()))

    def went(self, site: str) -> None:
        self.heard.append(("went", time.monotonic()))

    def _standing(self, peer: Peer, facts: CertificateFacts) -> None:
        self.callers.append(peer.name)
        self.registry.standing(peer, facts)


def make_site(hub: Hub, home: Path, invitation: Invitation | None, address: str) -> None:
    """Make the home of a site that lets the consortium train, on data that nobody reads."""
    make_home(
        home,
        site=SITE,
        gateway_address=address,
        data={"cohort": {"kind": "npz", "path": "/nowhere.npz"}},
        policy_text=policy_text(
            coordinators={"hub": hub.consortium.coordinator_key},
            operators={"ana": pin(fingerprint(hub.operator.signer.public_key))},
            data={"cohort": DataRule(lineage="patients", public_size=500, unit="row")},
            tasks={"digits": "cohort"},
            logs="outcomes",
        ),
        invitation=invitation,
    )


class RunningAgent:
    """A real agent on a home of its own, in a thread."""

    def __init__(self, hub: Hub, invitation: Invitation | None, address: str) -> None:
        self.home = hub.folder / "site"
        if not self.home.exists():
            make_site(hub, self.home, invitation, address)
        config = load_agent_config(self.home, [])
        self.books = open_books(config)
        self.agent = Agent(config, Scripted(log=hub.folder / "executions"), self.books)
        self.failed: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except BaseException as error:
            self.failed.append(error)
            raise

    @property
    def status(self) -> Status | None:
        return read_status(self.home)

    def until(self, state: str, timeout_s: float = 15.0) -> Status:
        until(lambda: (s := self.status) is not None and s.connection == state, timeout_s)
        status = self.status
        assert status is not None
        return status

    def close(self) -> None:
        self.agent.stop()
        self.thread.join(HANG_S)
        assert not self.thread.is_alive(), "the agent did not end"
        assert not self.failed
        self.books.close()


Start = Callable[..., RunningAgent]
