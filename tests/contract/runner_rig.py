"""A real ServerApp, journal, link, engine, gateway and blob store; the sites alone are played.

The played sites do what real ones promise: each piece of work is done once, by its order's digest,
and its update is sent again when it is asked for again. Everything survives `Coordinator.run`, as
sites survive the death of a run's process.
"""

import contextlib
import hashlib
import json
import socket
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.plans import SignedOrder, SignedRunEnded, SignedTerms
from fedfactory.contracts.privacy import PrivacySpent
from fedfactory.contracts.updates import Payload, Refusal, Reply, Update
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.gateway import Gateway
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.coordinator.link_server import LinkServer
from fedfactory.coordinator.run_settings import RunSettings
from fedfactory.coordinator.running.journal import JOURNAL, Journal, read_events
from fedfactory.coordinator.running.link import LinkClosedError, LinkRing
from fedfactory.coordinator.running.run_grid import RunGrid
from fedfactory.coordinator.running.serverapp import serve
from fedfactory.identity.enrolment import (
    install_certificate,
    load_identity,
    read_request,
    request_identity,
)
from fedfactory.identity.issuer import Issuer
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.root import Root
from fedfactory.identity.signing import Signer, new_signing_key, verify
from fedfactory.privacy.sampling import sampling
from fedfactory.rounds.log import decode_event
from fedfactory.wire.arrays import read_arrays, write_arrays
from tests.run_plans import run_plan

SITES = ("cesga", "lumi", "vega")
RUN = "run-1"
TRAINING = TrainParameters(
    local_epochs=1, batch_size=32, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)


class Killed(BaseException):
    """The run's process dies here."""


class Sites:
    """All sites' agents: their books, and how they learn. `refuse` maps (site, round) to a code."""

    def __init__(self, folder, elements=64):
        self.folder = folder
        folder.mkdir()
        self.done = {}  # order digest -> Update
        self.files = {}  # digest of an update -> its bytes
        self.deliveries = Counter()
        self.numbers = {}  # (round, kind, site) -> number of the last sending
        self.refuse = {}
        self.hostile = {}  # site -> (order, its honest reply as JSON) -> the text it sends
        self.ended = []
        self.elements = elements

    def model(self, path):
        random = np.random.default_rng(3)
        return write_arrays(
            path,
            {
                "batches": np.asarray([4], dtype=np.int64),
                "weight": random.standard_normal(self.elements, dtype=np.float32),
            },
        )

    def answer(self, delivery, store):
        """Do an order, or find that it was done; return the Reply and upload the update."""
        verify(delivery.envelope, delivery.signature)
        order = delivery.envelope.order
        key = order.key()
        place = (order.round, order.kind, order.site)
        assert delivery.envelope.number > self.numbers.get(place, 0), "a sending's number fell back"
        assert delivery.envelope.expires_at > time.time()
        self.numbers[place] = delivery.envelope.number
        self.deliveries[key.order_digest] += 1
        if code := self.refuse.get((order.site, order.round)):
            return Reply(update=None, refusal=Refusal(work=key, code=code), anchor=None)
        if key.order_digest not in self.done:
            self.done[key.order_digest] = self._work(order, store.path(order.base.digest))
        update = self.done[key.order_digest]
        if update.payload is not None:
            blob = update.payload.blob
            peer = Peer(role=Role.SITE, name=order.site)
            offset = store.arrived(peer, blob)
            if offset < blob.bytes:
                store.receive(peer, blob, offset, [self.files[blob.digest][offset:]])
        return Reply(update=update, refusal=None, anchor=None)

    def reply(self, text, store):
        """Return a reply as it travels, and its upload's digest; `hostile` sites send theirs."""
        if '"run_ended"' in text:
            signed = from_json(SignedRunEnded, text)
            verify(signed.run_ended, signed.signature)
            self.ended.append(signed.run_ended.site)
            return "{}", None
        delivery = from_json(SignedOrder, text)
        found = self.answer(delivery, store)
        payload = found.update and found.update.payload
        text = to_json(found)
        spoil = self.hostile.get(delivery.envelope.order.site)
        said = text if spoil is None else spoil(delivery.envelope.order, json.loads(text))
        return said, payload and payload.blob.digest

    def _work(self, order, base):
        model = read_arrays(base)
        assert "sha256:" + hashlib.sha256(base.read_bytes()).hexdigest() == order.base.digest
        random = np.random.default_rng([SITES.index(order.site), order.round])
        target = random.standard_normal(self.elements, dtype=np.float32)
        payload = None
        if order.kind == "train":
            out = self.folder / "update"
            # Under differential privacy, less than the noise and clipping of its steps allow.
            part = np.float32(0.3 if order.privacy is None else 0.02)
            delta = part * (target - model["weight"])
            blob = write_arrays(out, {"weight": delta})
            self.files[blob.digest] = out.read_bytes()
            payload = Payload(form="delta", blob=blob)
        examples = 100 + 10 * SITES.index(order.site)
        return Update(
            work=order.key(),
            payload=payload,
            examples=examples,
            metrics={"loss": min(1e30, float(np.square(model["weight"], dtype=np.float64).mean()))},
            seconds=0.5,
            privacy=spent_of(order, examples),
        )


def spent_of(order, public_size):
    """Return what an honest site of that public size says of its guarantee."""
    if order.privacy is None:
        return None
    once = None if order.training is None else sampling(order.training, public_size)
    return PrivacySpent(
        epsilon_run=1.0,
        delta=1e-5,
        noise_multiplier=order.privacy.noise_multiplier or 1.0,
        sample_rate=1.0 if once is None else once.sample_rate,
        steps=1 if once is None else once.steps,
        unit="row",
        accountant="RDP",
    )


class Grids:
    """What the runs' Grids push and pull; sites answer at once, on the thread that pushes.

    `earlier` maps ids of messages of all processes so far to the site and what it replied.
    """

    def __init__(self, coordinator, silent, on_push):
        self._coordinator, self._silent, self._on_push = coordinator, set(silent), on_push
        self.pushed, self.pulled, self.replies = [], [], {}

    def __enter__(self):
        self._patched = patched = pytest.MonkeyPatch()
        push, pull, mine = RunGrid.push_messages, RunGrid.pull_messages, self

        def push_messages(grid, messages):
            messages = list(messages)
            mine._on_push(messages)
            mine.pushed += messages
            sent = push(grid, messages)
            mine._answer()
            with contextlib.suppress(LinkClosedError):
                grid._link.traffic()  # answered in order: now every reply has been heard
            return sent

        def pull_messages(grid, message_ids):
            mine.pulled += message_ids
            return pull(grid, message_ids)

        patched.setattr(RunGrid, "push_messages", push_messages)
        patched.setattr(RunGrid, "pull_messages", pull_messages)
        return self

    def __exit__(self, *_):
        self._patched.undo()

    def _answer(self):
        coordinator = self._coordinator
        for site in coordinator.settings.plan.terms.sites:
            while found := coordinator.link.fetch(site):
                if site not in self._silent:
                    text, digest = coordinator.sites.reply(found.text, coordinator.store)
                    self.replies[found.message_id] = (site, text, digest)
                    coordinator.link.reply(site, found.message_id, text, digest)


class NotHere:
    """An office of the gateway's that a run has no use for."""

    def __getattr__(self, name):
        raise_here = f"nobody asks for {name}"

        def refuse(*_):
            raise AssertionError(raise_here)

        return refuse


class Coordinator:
    """One coordinator's home with one run in it. `run` starts its ServerApp, which ends or dies."""

    def __init__(self, home, *, sites=SITES, **changes):
        self.home = home
        self.folder = home / "runs" / RUN
        (self.folder / "models").mkdir(parents=True)
        self.sites = Sites(home / "sites", changes.pop("elements", 64))
        (home / "signing.key").write_bytes(new_signing_key())
        staged = home / "initial"
        self.initial = self.sites.model(staged)
        staged.rename(self.model_path(self.initial.digest))
        self.settings = settings_of(self, sites, **changes)
        self._identity = _identity(home)
        self.gateway = None
        self.start_gateway()

    def model_path(self, digest):
        return self.folder / "models" / digest.removeprefix("sha256:")

    def start_gateway(self):
        """Start the gateway's side, anew if it is there: its memory is lost, its files are not."""
        self.rings = []
        self.link = None
        self.store = BlobStore(self.home / "blobs")
        self.gateway = Gateway(
            identity=lambda: self._identity,
            store=self.store,
            standing=lambda *_: None,
            revocations=lambda: (),
            desk=NotHere(),
            registrar=NotHere(),
            limits=GatewayLimits(max_model_bytes=1 << 30),
        )
        self.gateway.open_run(RUN, self.settings.plan.terms.sites, 1 << 30)
        return self

    def stop(self, reason, *, after_round):
        """Ask the run to stop: the process that is here, and those to come."""
        ring = LinkRing(event="stop", reason=reason, after_round=after_round, at=time.time())
        self._tell(ring)

    def left(self, site, code):
        """Say that a site left for good, to the process that is here and those to come."""
        self._tell(LinkRing(event="site_left", site=site, code=code))

    def _tell(self, ring):
        self.rings.append(ring)
        if self.link is not None:
            self.link.tell(ring)

    def run(self, *, silent=(), here=None, on_push=None):
        """Run a ServerApp in this process until it returns or dies, with an engine of its own."""
        # Doorbells are streams of the network's, which has contract tests of its own.
        self.gateway.connected = lambda: sorted(SITES if here is None else here)
        ours, theirs = socket.socketpair()
        self.link = LinkServer(
            ours,
            self.gateway,
            RUN,
            self.settings.plan.terms.sites,
            moved_before={},
            rings=self.rings,
        )
        self.grid = Grids(self, silent, on_push or (lambda _: None))
        try:
            with self.grid, theirs:
                serve(theirs, self.settings)
        finally:
            self.link.close()
            self.link = None

    def events(self):
        return [decode_event(line)[1] for _, line in read_events(self.folder / JOURNAL)]


def settings_of(coordinator, sites, **changes):
    """A run's settings: `changes` are of its plan, terms, rules and evaluation."""
    plan = run_plan(
        **{
            "run_id": RUN,
            "sites": sites,
            "initial": coordinator.initial,
            "training": TRAINING,
            "seed": 7,
            "rounds": 3,
            "checkpoints": 2,
            "quorum": len(sites),
            "deadline_s": 60.0,
            "lateness_s": 5.0,
            "retries": 1,
            **changes,
        }
    )
    signer = Signer((coordinator.home / "signing.key").read_bytes())
    signed = SignedTerms(terms=plan.terms, signature=signer.sign(plan.terms))
    return RunSettings(
        plan=replace(plan, signed=signed),
        signing_key=str(coordinator.home / "signing.key"),
        anchors=str(coordinator.home / "anchors"),
        any_strategy_class=False,
        run_folder=str(coordinator.folder),
        start_timeout_s=0.2,
    )


def _identity(home):
    issuer = Issuer.create(home / "issuer", "test", Root.new("test"))
    folder = home / "identity"
    request_identity(folder, Role.COORDINATOR, "hub")
    csr = read_request(folder).csr_pem
    chain = issuer.sign(csr, Role.COORDINATOR, "hub", timedelta(days=1), hosts=("localhost",))
    install_certificate(folder, chain, issuer.bundle_pem)
    return load_identity(folder)


class KillAt:
    """Kills the run's process at the journal's n-th write (from 0), before it or after it."""

    def __init__(self, monkeypatch, write, *, after):
        self.writes = 0
        append = Journal.append

        def dying(journal, events):
            mine, self.writes = self.writes, self.writes + 1
            if mine == write and not after:
                raise Killed
            append(journal, events)
            if mine == write and after:
                raise Killed

        monkeypatch.setattr(Journal, "append", dying)


def ref_of(path):
    data = path.read_bytes()
    return BlobRef(digest="sha256:" + hashlib.sha256(data).hexdigest(), bytes=len(data))
