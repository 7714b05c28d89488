"""A real gateway on loopback with a real registry and real runs' engines; the desk is played."""

import contextlib
import hashlib
import socket
import threading
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD
from fedfactory.coordinator.flower_seam import assume_app_identity, from_bytes, to_bytes
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.gateway import Gateway
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.coordinator.link_server import LinkServer
from fedfactory.coordinator.membership.registrar import issued
from fedfactory.coordinator.membership.registry import Registry
from fedfactory.coordinator.running.link import Link, Replied
from fedfactory.identity.enrolment import Identity, request_text
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.root import Root
from fedfactory.wire.membership import Certified, Members
from fedfactory.wire.operations import (
    Done,
    LogsGiven,
    ModelFound,
    Runs,
    Submitted,
    Watched,
)
from fedfactory.wire.rpc.service import GatewayCalls
from fedfactory.wire.tls import open_channel
from site_agents.gateway_client import GatewayClient
from tests.patience import until

MIB = 1024 * 1024
RUN = "run-1"
LIMITS = GatewayLimits(max_model_bytes=64 * MIB)


class Desk:
    """Answers every wish; `asked` lists who wished for what."""

    def __init__(self):
        self.asked = []
        self.fails_with = None
        self.watches_until = threading.Event()

    def _note(self, peer, wanted):
        self.asked.append((peer, wanted))
        if self.fails_with is not None:
            raise self.fails_with

    def submit(self, peer, wanted):
        self._note(peer, wanted)
        return Submitted(run_id=None, reason="no", findings=())

    def list_runs(self, peer, wanted):
        self._note(peer, wanted)
        return Runs(runs=(), left_out=())

    def watch(self, peer, wanted):
        self._note(peer, wanted)
        number = wanted.after
        while True:
            number += 1
            yield Watched(number=number, status="running", event="e", summary=None)
            if self.watches_until.wait(0.05):
                return

    def stop(self, peer, wanted):
        self._note(peer, wanted)
        return Done(message="stopped")

    resume = revoke = stop

    def logs(self, peer, wanted):
        self._note(peer, wanted)
        return LogsGiven(logs=None)

    def find_model(self, peer, wanted):
        self._note(peer, wanted)
        return ModelFound(model=None, round=None, kept=())

    def list_members(self, peer, wanted):
        self._note(peer, wanted)
        return Members(consortium="lead", members=())

    def invite(self, peer, wanted):
        self._note(peer, wanted)
        raise AssertionError("a fault of the coordinator's own, with secrets in it")


class Certifier:
    """Stands where the registrar does; its own tests are elsewhere."""

    def __init__(self):
        self.asked = []

    def enrol(self, peer, facts, wanted, version):
        self.asked.append((peer, facts, wanted, version))
        return Certified(
            certificate="-----BEGIN CERTIFICATE-----", authority="-----BEGIN CERTIFICATE-----"
        )

    renew = enrol


class Ear:
    """A listener that keeps what it hears."""

    def __init__(self):
        self.heard = []

    def came(self, site):
        self.heard.append(("came", site))

    def went(self, site):
        self.heard.append(("went", site))


class PlayedRun:
    """A run's process, as the gateway sees it: a real link, over a real server's socket.

    `heard` is what came to it, in order; each reply as (message id, text, claimed digest).
    """

    def __init__(self, rig, run_id, sites):
        rig.gateway.open_run(run_id, sites, 256 * MIB)
        self.run_id, self.heard, self.replies = run_id, [], []
        ours, theirs = socket.socketpair()
        self.over = threading.Event()
        self.server = LinkServer(
            ours, rig.gateway, run_id, sites, moved_before=rig.gateway.traffic(), over=self.over.set
        )
        self.link = Link(theirs, self._hear)
        self.greeting = self.link.hello()

    def _hear(self, said):
        self.heard.append(said)
        if isinstance(said, Replied):
            message = from_bytes(said.flower)
            text = message.content[MESSAGE_RECORD][MESSAGE_FIELD]
            assert message.metadata.reply_to_message_id == said.message
            self.replies.append((said.message, text, said.claimed))

    def message(self, site, text, ttl=60.0):
        assume_app_identity(self.greeting.run)
        content = RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: text})})
        return to_bytes(Message(content, self.greeting.nodes[site], "train", group_id="1", ttl=ttl))

    def push(self, site, *texts, ttl=60.0):
        """Push a message for each text; return their ids, None for what is refused."""
        return self.link.push([self.message(site, text, ttl) for text in texts])

    def order(self, site, text="an order", *, ttl=60.0):
        """Push one message; return its id."""
        (sent,) = self.push(site, text, ttl=ttl)
        assert sent is not None
        return sent

    def close(self):
        """The process dies, or ends."""
        self.link.close()
        self.server.close()


class Rig:
    def __init__(self, folder, *, limits=LIMITS):
        self.folder = folder
        self.limits = limits
        self.issuer = Issuer.create(folder / "issuer", "lead", Root.new("lead"))
        self.registry = Registry(folder / "registry.sqlite")
        self.desk = Desk()
        self.registrar = Certifier()
        self.ear = Ear()
        self._identities = {}
        self.identity = self.enrol(Role.COORDINATOR, "lead", hosts=("127.0.0.1", "localhost"))
        self._open = contextlib.ExitStack()
        self.port = 0
        self.start()

    def start(self):
        """Start the gateway (again): on the same port, with the blobs of before."""
        self.store = BlobStore(self.folder / "blobs")
        self._running = set()
        self.gateway = Gateway(
            identity=lambda: self.identity,
            store=self.store,
            revocations=lambda: (),
            standing=self.registry.standing,
            desk=self.desk,
            registrar=self.registrar,
            limits=self.limits,
        )
        self.gateway.subscribe(self.ear)
        self.port = self.gateway.start("127.0.0.1", self.port)
        self.address = f"127.0.0.1:{self.port}"

    def close(self):
        self._open.close()
        self.desk.watches_until.set()
        self.gateway.stop()
        self.registry.close()
        assert not list(self.store.root.glob(".*")), "something half-written was left behind"
        until(lambda: not self.gateway._door.calls._calls)

    def enrol(self, role, name, *, hosts=(), issuer=None, lifetime=timedelta(days=1)):
        """Return an identity of the consortium's, the same one each time."""
        if issuer is None and (role, name) in self._identities:
            return self._identities[role, name]
        key = ec.generate_private_key(ec.SECP256R1())
        csr = request_text(key, name).encode()
        signer = issuer or self.issuer
        chain = signer.sign(csr, role, name, lifetime, hosts=hosts)
        identity = Identity(
            key_pem=_private_pem(key), certificate_pem=chain, authority_pem=signer.bundle_pem
        )
        if issuer is None:
            self._enlist(Peer(role=role, name=name), issued(chain, self.issuer))
            self._identities[role, name] = identity
        return identity

    def _enlist(self, peer, made):
        if peer.role is Role.INVITED:
            self.registry.invite(Peer(role=Role.SITE, name=peer.name), made, by="ana")
        else:
            self.registry.enlist(peer, made)

    def save(self, identity, folder):
        """Write an identity as a daemon keeps it."""
        folder.mkdir()
        (folder / "tls.key").write_bytes(identity.key_pem)
        (folder / "certificate.pem").write_bytes(identity.certificate_pem)
        (folder / "authority.pem").write_bytes(identity.authority_pem)
        return folder

    def admit(self, site):
        """Enrol a site, with an open run of its own; return a client that speaks as it."""
        identity = self.enrol(Role.SITE, site)
        self.open_run(site)
        return self.client(identity)

    def open_run(self, site):
        if site not in self._running:
            self._running.add(site)
            self.gateway.open_run(f"run-of-{site}", (site,), 256 * MIB)

    def client(self, identity):
        client = GatewayClient(self.address, identity)
        self._open.callback(client.close)
        return client

    def calls(self, site):
        """The bare protocol, as a site: for what our own client would never send."""
        channel = open_channel(self.address, self.enrol(Role.SITE, site))
        self._open.callback(channel.close)
        return GatewayCalls(channel)

    def run(self, *sites, run_id=RUN):
        """A run's process begins; it ends with the rig, if it has not before."""
        run = PlayedRun(self, run_id, sites)
        self._open.callback(run.close)
        return run

    def offer(self, site, data):
        """Adopt `data` as a blob of the site's run and offer it."""
        source = self.folder / "staged"
        source.unlink(missing_ok=True)
        source.write_bytes(data)
        ref = ref_of(data)
        self.open_run(site)
        self.store.adopt(f"run-of-{site}", source, ref)
        self.gateway.offer(f"run-of-{site}", site, ref.digest)
        return ref

    def arriving(self):
        """What lies among the uploads: file name -> length."""
        return {p.name: p.stat().st_size for p in (self.store.root / "arriving").iterdir()}


def _private_pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@contextlib.contextmanager
def open_rig(folder, **options):
    rig = Rig(Path(folder), **options)
    try:
        yield rig
    finally:
        rig.close()


def ref_of(data):
    return BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), bytes=len(data))


class Relay:
    """A TCP relay to a local port that cuts its first connections after so many bytes down (up)."""

    def __init__(self, port, cut_after, *, up=False):
        self._up = up
        self._target = port
        self._cut_after = list(cut_after)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.carried = 0
        self.cuts_made = 0
        self._sockets = [self._listener]
        self._threads = []

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_):
        for end in self._sockets:
            _hang_up(end)
        for thread in self._threads:
            thread.join()

    def _start(self, target, *args):
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                gateway = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [caller, gateway]
                budget = self._cut_after.pop(0) if self._cut_after else None
                self._start(self._pump, caller, gateway, budget if self._up else None)
                self._start(self._pump, gateway, caller, None if self._up else budget)

    def _pump(self, source, sink, budget):
        down = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                down += len(data)
                if budget is not None and down > budget:
                    self.cuts_made += 1
                    break
        self.carried += down
        _hang_up(source)
        _hang_up(sink)


def _hang_up(end):
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
