"""A real gateway on loopback with real identities; SuperLink is played by a function."""

import contextlib
import hashlib
import socket
import threading
import time
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.blobs import BlobStore
from fedfactory.coordinator.gateway import Gateway
from fedfactory.identity.authority import Authority
from fedfactory.identity.enrolment import (
    install_certificate,
    load_identity,
    load_node_key,
    read_request,
    request_identity,
)
from fedfactory.identity.roles import Role
from site_agents.gateway_client import GatewayClient

MIB = 1024 * 1024


class Rig:
    """`answer(method, body)` plays SuperLink; `forwarded` lists the calls that reached it."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = Authority.create_ephemeral()
        self.store = BlobStore(folder / "blobs")
        self.forwarded = []
        self.answer = lambda method, body: (200, b"")
        self.gateway = Gateway(
            self.enrol(Role.COORDINATOR, "lead", hosts=("127.0.0.1", "localhost")),
            self.store,
            self._forward,
        )
        self.gateway.limit_uploads(256 * MIB)
        self.port = self.gateway.start("127.0.0.1")
        self.address = f"127.0.0.1:{self.port}"
        self._open = contextlib.ExitStack()

    def _forward(self, method, public_key, timestamp, signature, body):
        self.forwarded.append((method, public_key, timestamp, signature, body))
        return self.answer(method, body)

    def close(self):
        self._open.close()
        self.gateway.stop()
        assert not list(self.store.root.glob(".*")), "something half-written was left behind"

    def enrol(self, role, name, *, hosts=(), authority=None):
        authority = authority or self.authority
        folder = self.folder / f"identity-{role}-{name}"
        request_identity(folder, role, name, node_key=role is Role.SITE)
        request = read_request(folder)
        certificate = authority.sign(request.csr_pem, role, name, timedelta(days=1), hosts=hosts)
        install_certificate(folder, certificate, authority.certificate_pem)
        return load_identity(folder)

    def admit(self, site, node_id):
        """Enrol and admit a site; return a client that speaks as it."""
        identity = self.enrol(Role.SITE, site)
        self.gateway.admit(site, node_id, self.public_key(site))
        return self.client(identity)

    def client(self, identity):
        client = GatewayClient(self.address, identity)
        self._open.callback(client.close)
        return client

    def public_key(self, site):
        return read_request(self.folder / f"identity-site-{site}").node_public_key.encode()

    def signed(self, site):
        """The keyword arguments that prove a Fleet call to be `site`'s."""
        key = serialization.load_pem_private_key(
            load_node_key(self.folder / f"identity-site-{site}"), password=None
        )
        timestamp = datetime.now(UTC).isoformat()
        return {
            "public_key": self.public_key(site),
            "timestamp": timestamp,
            "signature": key.sign(timestamp.encode(), ec.ECDSA(hashes.SHA256())),
        }

    def offer(self, site, data):
        """Adopt `data` as a blob and offer it to a site."""
        source = self.folder / "staged"
        source.write_bytes(data)
        ref = ref_of(data)
        self.store.adopt(source, ref)
        self.gateway.offer(site, ref.digest)
        return ref


@contextlib.contextmanager
def open_rig(folder):
    rig = Rig(folder)
    try:
        yield rig
    finally:
        rig.close()


def ref_of(data):
    return BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), bytes=len(data))


def eventually(condition, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


class Relay:
    """A TCP relay to a local port that cuts its first connections after so many bytes down."""

    def __init__(self, port, cut_after):
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
                self._start(self._pump, caller, gateway, None)  # few bytes: requests
                self._start(self._pump, gateway, caller, budget)

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
