"""A played desk behind the real services: gRPC on loopback, mutual TLS, certificates of an issuer."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc

from fedfactory.contracts.errors import (
    FedfactoryError,
    IdentityError,
    RefusedError,
    UnknownNameError,
    UsageError,
)
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.questions import LogLine, SiteLogs
from fedfactory.identity.enrolment import (
    Identity,
    install_certificate,
    load_identity,
    read_request,
    request_identity,
)
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.operators import Membership, save_membership
from fedfactory.identity.roles import Peer, Role, peer_of
from fedfactory.identity.root import Root
from fedfactory.identity.signing import fingerprint, verify
from fedfactory.wire.membership import Certified, Invitation, Member, Members
from fedfactory.wire.operations import (
    Done,
    LogsGiven,
    ModelFound,
    RunRow,
    Runs,
    Submitted,
    Watched,
)
from fedfactory.wire.rpc import gateway_pb2 as pb
from fedfactory.wire.rpc.pieces import BlobReference
from fedfactory.wire.rpc.service import handlers
from fedfactory.wire.tls import SERVER_OPTIONS, server_credentials
from tests.unit.operator_runs import MODEL, RUN_ID, SITES, lines, summary_of

CONSORTIUM = "alliance"
NOW = 1_800_000_000.0
DAY_S = 86400.0


def row(run_id: str = RUN_ID, **changes) -> RunRow:
    told = RunRow(
        run_id=run_id,
        task="digits",
        strategy="fedavg",
        operator="ana",
        status="completed",
        round=2,
        rounds=2,
        sites=SITES,
        submitted_at=NOW - 3600,
        ended_at=NOW - 3000,
        reason="every round is finished",
        damage="",
    )
    return replace(told, **changes)


def member(name: str, **changes) -> Member:
    told = Member(
        role="site",
        name=name,
        status="enrolled",
        fingerprint="sha256:" + "a" * 64,
        version="0.1.0",
        valid_until=NOW + 20 * DAY_S,
        connected=True,
        seen_at=NOW - 1,
        reason="",
    )
    return replace(told, **changes)


class PlayedDesk:
    """Answers from fields that a test sets. `lines` grow while a run is live; `ended` ends it."""

    def __init__(self) -> None:
        self.rows = [row(), row("20261120-090000-cd34", status="failed", reason="cesga is gone")]
        self.members = [member("cesga"), member("lumi")]
        self.lines = lines()
        self.ended = True
        self.end = "completed"
        self.status = "running"
        self.submitted: list = []
        self.left_out: tuple[str, ...] = ()
        self.answer = None
        self.asked: list = []
        self.logs_given = SiteLogs(
            status="let_out",
            lines=(LogLine(at=NOW, round=1, kind="train", outcome="update", seconds=2.0),),
        )
        self.model = BlobRef(digest=_digest(MODEL), bytes=len(MODEL))
        self.files = {self.model.digest: MODEL}

    def submit(self, peer: Peer, plan) -> Submitted:
        verify(plan.terms, plan.signed.signature)
        self.submitted.append(plan)
        if self.answer is not None:
            return self.answer
        run_id = plan.terms.run_id
        self.rows.insert(0, row(run_id, status="running"))
        self.lines = lines(run_id=run_id)
        return Submitted(run_id=run_id, reason="", findings=())

    def list_runs(self, peer: Peer, wanted) -> Runs:
        return Runs(runs=tuple(self.rows[: wanted.limit]), left_out=self.left_out)

    def watch(self, peer: Peer, wanted) -> Iterator[Watched]:
        if wanted.run_id not in [found.run_id for found in self.rows]:
            raise UnknownNameError("run", wanted.run_id, [r.run_id for r in self.rows])
        number = wanted.after
        while True:
            over = self.ended or not wanted.follow
            while number < len(self.lines):
                event = self.lines[number]
                number += 1
                yield Watched(number=number, status=self.status, event=event, summary=None)
            if over:
                break
            yield Watched(number=number, status=self.status, event=None, summary=None)
            time.sleep(0.02)
        summary = None
        if self.ended:
            summary = summary_of(run_id=wanted.run_id, status=self.end, model=self.model)
        status = self.end if self.ended else self.status
        yield Watched(number=number, status=status, event=None, summary=summary)

    def stop(self, peer: Peer, wanted) -> Done:
        self.asked.append(("stop", wanted.run_id, wanted.mode))
        return Done(message=f"the run {wanted.run_id} stops")

    def resume(self, peer: Peer, wanted) -> Done:
        if self.rows[0].status == "completed":
            raise RefusedError("the run is completed: only failed and stopped ones resume")
        return Done(message=f"the run {wanted.run_id} goes on")

    def logs(self, peer: Peer, wanted) -> LogsGiven:
        verify(wanted.signed.request, wanted.signed.signature)
        return LogsGiven(logs=self.logs_given)

    def find_model(self, peer: Peer, wanted) -> ModelFound:
        if wanted.round is not None and wanted.round != 2:
            return ModelFound(model=None, round=None, kept=(1, 2))
        return ModelFound(model=self.model, round=2, kept=(1, 2))

    def invite(self, peer: Peer, wanted) -> Invitation:
        return Invitation(
            consortium=CONSORTIUM,
            gateway="hub.example.org:443",
            role=wanted.role,
            name=wanted.name,
            token="5ec2e7" + "0" * 58,
            certificate="-----BEGIN CERTIFICATE-----",
            authority="-----BEGIN CERTIFICATE-----",
            coordinator_key="sha256:" + "b" * 64,
            operator_keys={},
            expires_at=NOW + wanted.lifetime_s,
            version="0.1.0",
        )

    def list_members(self, peer: Peer, wanted) -> Members:
        return Members(consortium=CONSORTIUM, members=tuple(self.members))

    def revoke(self, peer: Peer, wanted) -> Done:
        self.asked.append(("revoke", wanted.role, wanted.name, wanted.reason))
        return Done(message=f"{wanted.role} '{wanted.name}' is cut off")


class DeskServer:
    """Serves a desk with the real services; `stop` and `start` play a coordinator's restart."""

    def __init__(self, folder: Path) -> None:
        self.desk = PlayedDesk()
        self.folder = folder
        self._issuer = Issuer.create(folder / "issuer", CONSORTIUM, Root.new(CONSORTIUM))
        self._identity = self.enrol(Role.COORDINATOR, CONSORTIUM, hosts=("127.0.0.1", "localhost"))
        self._server: grpc.Server | None = None
        self._held: dict[str, bytes] = {}
        self.port = 0
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16), options=SERVER_OPTIONS)
        self._server.add_generic_rpc_handlers(tuple(handlers(self._serve)))
        credentials = server_credentials(lambda: self._identity)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(grace=None).wait()
            self._server = None

    def enrol(
        self,
        role: Role,
        name: str,
        *,
        hosts: tuple[str, ...] = (),
        lifetime: timedelta = timedelta(days=10),
    ) -> Identity:
        folder = self.folder / f"{role}-{name}" / "identity"
        request_identity(folder, role, name)
        csr = read_request(folder).csr_pem
        certificate = self._issuer.sign(csr, role, name, lifetime, hosts=hosts)
        install_certificate(folder, certificate, self._issuer.bundle_pem)
        return load_identity(folder)

    def person(self, role: Role, name: str) -> Path:
        """Enrol somebody; return the folder that `--as` takes."""
        self.enrol(role, name)
        folder = self.folder / f"{role}-{name}"
        key = read_request(self.folder / f"{Role.COORDINATOR}-{CONSORTIUM}" / "identity").public_key
        save_membership(
            folder,
            Membership(
                consortium=CONSORTIUM,
                gateway=self.address,
                name=name,
                role=role,
                coordinator_key=fingerprint(key),
            ),
        )
        return folder

    def _serve(self, method, messages, context) -> Iterator[bytes]:
        peer = peer_of(context.auth_context())
        if peer.role not in method.roles:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"a {peer.role} may not do this")
        requests = (method.request.from_wire(message) for message in messages)
        try:
            for answer in self._answers(method, peer, requests):
                yield method.answer.to_wire(answer)
        except FedfactoryError as error:
            context.abort(_status(error), error.public_message)

    def _answers(self, method, peer, requests) -> Iterator:
        if method.name == "Upload":
            reference = next(requests)
            assert isinstance(reference, BlobReference)
            self._held[reference.digest] = b"".join(bytes(part) for part in requests)
            assert _digest(self._held[reference.digest]) == reference.digest
            self.desk.files[reference.digest] = self._held[reference.digest]
            yield pb.UploadReceipt(digest=reference.digest)
        elif method.name == "Arrived":
            next(requests)
            yield pb.ArrivedBytes(offset=0)
        elif method.name == "Renew":
            wanted = next(requests)
            ten_days = timedelta(days=10)
            chain = self._issuer.sign(wanted.csr.encode(), peer.role, peer.name, ten_days)
            yield Certified(certificate=chain.decode(), authority=self._issuer.bundle_pem.decode())
        elif method.name == "Download":
            wanted = next(requests)
            yield self.desk.files[wanted.digest][wanted.offset :]
        else:
            names = {"ListRuns": "list_runs", "FindModel": "find_model"}
            names["ListMembers"] = "list_members"
            call = getattr(self.desk, names.get(method.name, method.name.lower()))
            found = call(peer, next(requests))
            yield from found if method.streams == "down" else (found,)


def after(seconds: float, act) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def _status(error: FedfactoryError) -> grpc.StatusCode:
    kinds = (
        (UnknownNameError, grpc.StatusCode.NOT_FOUND),
        (RefusedError, grpc.StatusCode.FAILED_PRECONDITION),
        (IdentityError, grpc.StatusCode.PERMISSION_DENIED),
        (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
