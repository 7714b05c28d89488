"""A real coordinator's daemon with real runs and gateway; sites are stand-ins without workers.

A stand-in enrols with an invitation, listens, answers questions as it is told to and orders with an
update of ones. It is a member like any other: only what a site does with data is left out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import numpy as np
import psutil

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError, ProtocolError
from fedfactory.contracts.plans import SignedOrder
from fedfactory.contracts.questions import Answer, Preflight, SignedQuery, SiteLogs
from fedfactory.contracts.updates import Payload, Reply, Update
from fedfactory.coordinator.membership.founding import make_consortium
from fedfactory.identity.enrolment import load_identity
from fedfactory.identity.operators import load_operator
from fedfactory.wire.arrays import ArrayFile, ArrayWriter
from fedfactory.wire.enrolling import enrol_identity
from fedfactory.wire.membership import InviteRequest, MembersRequest
from fedfactory.wire.operations import RunsRequest
from fedfactory.wire.rpc.service import OperationsCalls
from fedfactory.wire.rpc.transfers import Transfers
from fedfactory.wire.tls import open_channel
from site_agents.gateway_client import GatewayClient
from tests.owned_processes import end_left, find, owned, token
from tests.patience import HANG_S, until
from tests.unit import coordinator_submissions as forms


class StandIn:
    """One site. `code` is what it answers to `fit`; `work` is cleared to let orders wait."""

    def __init__(self, folder: Path, rig: Rig) -> None:
        self.folder = folder
        self.code = ""
        self.work = threading.Event()
        self.work.set()
        self.orders: list[tuple[float, str, int, str]] = []  # when, run, round, kind
        self._rig = rig
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _live(self) -> None:
        while not self._over.is_set():
            with suppress(FedfactoryError, OSError):
                self._connect()
            self._over.wait(0.1)

    def _connect(self) -> None:
        client = GatewayClient(self._rig.address, load_identity(self.folder / "identity"))
        rung = threading.Event()
        gone = threading.Event()

        def hear() -> None:
            with suppress(FedfactoryError):
                for ring in client.listen():
                    if ring.question is not None:
                        client.answer(ring.question_id, self._reply_to(ring.question))
                    rung.set()
            gone.set()
            rung.set()

        hearing = threading.Thread(target=hear, daemon=True)
        hearing.start()
        held = []  # as an agent that has not finished when it is cut off: asked again later
        try:
            while not self._over.is_set() and not gone.is_set():
                if rung.wait(0.1):
                    rung.clear()
                    while (found := client.fetch()) is not None:
                        held.append((found.message_id, self._note(found.text)))
                while held and self.work.is_set():
                    self._do(client, *held.pop(0))
        finally:
            client.close()
            hearing.join()

    def _reply_to(self, text: str) -> Answer:
        asked = from_json(SignedQuery, text).query
        if asked.signed is not None:
            return Answer(preflight=Preflight(code=self.code, version="0"), logs=None)
        return Answer(preflight=None, logs=SiteLogs(status="withheld", lines=()))

    def _note(self, text):
        try:
            order = from_json(SignedOrder, text).envelope.order
        except ProtocolError:
            return None
        self.orders.append((time.monotonic(), order.run_id, order.round, order.kind))
        return order

    def _do(self, client, message_id, order) -> None:
        if order is None:
            return
        payload, digest = None, ""
        if order.kind == "train":
            payload = Payload(form="delta", blob=self._update(client, order))
            digest = payload.blob.digest
        update = Update(
            work=order.key(),
            payload=payload,
            examples=1,
            metrics={"loss": 1.0, "accuracy": 0.5},
            seconds=0.0,
            privacy=None,
        )
        reply = Reply(update=update, refusal=None, anchor=None)
        client.send(message_id, to_json(reply), digest)

    def _update(self, client, order):
        base = self.folder / "base.safetensors"
        base.unlink(missing_ok=True)
        client.download(order.base, base)
        with ArrayFile(base) as file:
            spec = file.spec.update_spec()
        path = self.folder / "update.safetensors"
        writer = ArrayWriter(path, spec)
        # Distinct bytes for each site and round, as trained updates have.
        value = order.round + sum(self.folder.name.encode()) / 1000
        for tensor in spec.tensors:
            writer.write(np.full(tensor.elements, value, dtype=np.float32))
        ref = writer.commit()
        client.upload(path, ref)
        return ref


class Rig:
    """A coordinator's home with its daemon, its lead, and stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "coordinator"
        self.sites: dict[str, StandIn] = {}
        self.process: subprocess.Popen[bytes] | None = None
        make_consortium(
            self.home,
            name=forms.COORDINATOR,
            gateway="127.0.0.1:0",
            hosts=("localhost",),
            root_key=folder / "root.key",
            passphrase=b"correct horse battery staple",
            operator="lead",
            operator_folder=folder / "lead",
        )
        self.lead = load_operator(folder / "lead")

    # ---- the daemon ------------------------------------------------------------------------

    def start(self, *words: str) -> None:
        with (self.folder / "coordinator.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "fedfactory.cli.main", "coordinator"),
                    *("--home", str(self.home), *words),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **token(self.folder)},
            )
        self.until(lambda: self.told().get("pids", {}).get("coordinator") == self.process.pid)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(HANG_S)

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to a part of the coordinator; return its process id."""
        pid = int(self.told()["pids"][name])
        os.kill(pid, number)
        if name == "coordinator" and number == signal.SIGKILL:
            assert self.process is not None
            self.process.wait()
        return pid

    def told(self) -> dict:
        try:
            return json.loads((self.home / "gateway.json").read_text())
        except FileNotFoundError:
            return {}

    @property
    def address(self) -> str:
        return str(self.told().get("address", "127.0.0.1:1"))

    def run_processes(self) -> list[psutil.Process]:
        return find(owned(self.folder), "fedfactory.coordinator.running.process")

    def log(self) -> str:
        return (self.folder / "coordinator.log").read_text()

    def until(self, holds, seconds: float = 40) -> float:
        """Wait until something holds; return how many seconds it took, by the load's clock."""

        def look() -> bool:
            if self.process is not None and self.process.poll() not in (None, -signal.SIGKILL):
                raise AssertionError(f"the daemon ended: {self.process.returncode}\n{self.log()}")
            return holds()

        return until(look, seconds, self.log)

    # ---- members ---------------------------------------------------------------------------

    @contextmanager
    def as_lead(self):
        with open_channel(self.address, self.lead.identity) as channel:
            grpc.channel_ready_future(channel).result(HANG_S)
            yield OperationsCalls(channel)

    def invite(self, site: str):
        with self.as_lead() as lead:
            return lead.invite(
                InviteRequest(role="site", name=site, lifetime_s=600.0), timeout=HANG_S
            )

    def settle(self, *names: str) -> None:
        for name in names:
            folder = self.folder / name
            folder.mkdir()
            enrol_identity(folder / "identity", self.invite(name))
            self.sites[name] = StandIn(folder, self)
        self.until(lambda: set(names) <= self.connected())

    def connected(self) -> set[str]:
        with self.as_lead() as lead:
            members = lead.list_members(MembersRequest(), timeout=HANG_S).members
        return {member.name for member in members if member.connected}

    # ---- runs ------------------------------------------------------------------------------

    def submission(self, run_id: str, sites=None, options=None, **changes):
        """Upload a model and return the plan of a run that begins with it."""
        path = self.folder / "initial.safetensors"
        path.unlink(missing_ok=True)
        initial = forms.model(path)
        with open_channel(self.address, self.lead.identity) as channel:
            grpc.channel_ready_future(channel).result(HANG_S)
            Transfers(channel).upload(path, initial)
        names = tuple(sorted(self.sites if sites is None else sites))
        if options is not None:
            changes["strategy_options"] = options
        changes.setdefault("quorum", len(names))
        return forms.plan_of(run_id, initial, sites=names, signer=self.lead.signer, **changes)

    def submit(self, run_id: str, **words):
        with self.as_lead() as lead:
            return lead.submit(self.submission(run_id, **words), timeout=HANG_S)

    def row(self, run_id: str):
        with self.as_lead() as lead:
            runs = lead.list_runs(RunsRequest(limit=100), timeout=HANG_S).runs
        return next(row for row in runs if row.run_id == run_id)

    def ended(self, run_id: str) -> bool:
        return (self.home / "runs" / run_id / "summary.json").exists()

    def summary(self, run_id: str) -> dict:
        return json.loads((self.home / "runs" / run_id / "summary.json").read_text())

    def orders_since(self, moment: float) -> list[float]:
        """When orders came to any site after a moment (time.monotonic())."""
        return sorted(at for site in self.sites.values() for at, *_ in site.orders if at > moment)

    def close(self) -> list[str]:
        """End everything; return what does not end with the daemon."""
        for site in self.sites.values():
            site.work.set()
            site.close()
        if self.process is not None and self.process.poll() is None:
            self.stop()
        return end_left(self.folder)
