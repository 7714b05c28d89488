"""A real ServerApp, journal, link, gateway and blob store; Flower's Grid and the sites are played.

The played sites do what real ones promise: each piece of work is done once, by its order's digest,
and its update is sent again when it is asked for again. Everything survives `Coordinator.run`, as
sites survive the death of a ServerApp.
"""

import hashlib
import itertools
import json
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import MESSAGE_FIELD, MESSAGE_RECORD, TrainParameters
from fedfactory.contracts.plans import Delivery, SignedEnding, SignedPlan
from fedfactory.contracts.privacy import PrivacySpent
from fedfactory.contracts.updates import Payload, Refusal, Reply, Update
from fedfactory.coordinator.flower_seam import assume_app_identity
from fedfactory.coordinator.gateway.blobs import BlobStore
from fedfactory.coordinator.gateway.gateway import Gateway
from fedfactory.coordinator.gateway.limits import GatewayLimits
from fedfactory.coordinator.link_server import LinkServer
from fedfactory.coordinator.run_settings import RunSettings
from fedfactory.coordinator.running.journal import JOURNAL, Journal, read_events
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
from tests.patience import until
from tests.run_plans import run_plan

SITES = ("cesga", "lumi", "vega")
RUN = "run-1"
TRAINING = TrainParameters(
    local_epochs=1, batch_size=32, lr=0.1, momentum=0.0, proximal_mu=0.0, max_steps=None
)


class Killed(BaseException):
    """The ServerApp's process dies here."""


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
        verify(delivery.sending, delivery.signature)
        order = delivery.sending.order
        key = order.key()
        place = (order.round, order.kind, order.site)
        assert delivery.sending.number > self.numbers.get(place, 0), "a sending's number fell back"
        assert delivery.sending.expires_at > time.time()
        self.numbers[place] = delivery.sending.number
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

    def text(self, delivery, store):
        """Return the reply as it travels; a hostile site's is what `hostile` makes of it."""
        text = to_json(self.answer(delivery, store))
        spoil = self.hostile.get(delivery.sending.order.site)
        return text if spoil is None else spoil(delivery.sending.order, json.loads(text))

    def end(self, signed):
        """Hear that the run is over."""
        verify(signed.ending, signed.signature)
        self.ended.append(signed.ending.site)
        return "{}"

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


class PlayedFlower(Grid):
    """One Flower run: messages reach the sites at once; replies wait until they are pulled."""

    _numbers = itertools.count()

    def __init__(self, sites, store, tell):
        self._sites, self._store, self._tell = sites, store, tell
        self._replies = {}
        self.silent = set()  # sites whose agent takes messages and says nothing
        self.on_push = lambda messages: None
        self.pushed, self.pulled = [], []

    def push_messages(self, messages):
        self.on_push(messages)
        sent = []
        for message in messages:
            self.pushed.append(message)
            message_id = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = message_id
            sent.append(message_id)
            text = str(message.content.config_records[MESSAGE_RECORD][MESSAGE_FIELD])
            if message.metadata.message_type == "query":
                reply = self._sites.end(from_json(SignedEnding, text))
            else:
                delivery = from_json(Delivery, text)
                if delivery.sending.order.site in self.silent:
                    continue
                reply = self._sites.text(delivery, self._store)
            content = RecordDict({MESSAGE_RECORD: ConfigRecord({MESSAGE_FIELD: reply})})
            self._replies[message_id] = Message(content, reply_to=message)
        for message_id in sent:
            if message_id in self._replies:
                self._tell(message_id)
        return sent

    def pull_messages(self, message_ids):
        self.pulled += message_ids
        return [self._replies.pop(one) for one in message_ids if one in self._replies]

    def get_node_ids(self):
        raise NotImplementedError

    create_message = set_run = send_and_receive = get_node_ids
    run = property(get_node_ids)


class NotHere:
    """An office of the gateway's that a run has no use for."""

    def __getattr__(self, name):
        raise_here = f"nobody asks for {name}"

        def refuse(*_):
            raise AssertionError(raise_here)

        return refuse


class Coordinator:
    """One coordinator's home with one run in it. `run` starts a ServerApp, which ends or dies."""

    def __init__(self, home, *, sites=SITES, **changes):
        assume_app_identity()
        self.home = home
        self.folder = home / "runs" / RUN
        (self.folder / "models").mkdir(parents=True)
        self.sites = Sites(home / "sites", changes.pop("elements", 64))
        (home / "signing.key").write_bytes(new_signing_key())
        staged = home / "initial"
        self.initial = self.sites.model(staged)
        staged.rename(self.model_path(self.initial.digest))
        self.settings = settings_of(self, sites, **changes)
        self._open = ExitStack()
        self._identity = _identity(home)
        self.gateway = None
        self.start_gateway()

    def model_path(self, digest):
        return self.folder / "models" / digest.removeprefix("sha256:")

    def start_gateway(self):
        """Start the gateway's side, anew if it is there: its memory is lost, its files are not."""
        self._open.close()
        self.store = BlobStore(self.home / "blobs")
        self.gateway = Gateway(
            identity=lambda: self._identity,
            store=self.store,
            forward=lambda *_: (200, b""),
            standing=lambda *_: None,
            revocations=lambda: (),
            desk=NotHere(),
            registrar=NotHere(),
            limits=GatewayLimits(max_model_bytes=1 << 30),
        )
        for number, site in enumerate(self.settings.plan.terms.sites):
            self.gateway.admit(site, 100 + number, b"key")
        self.gateway.open_run(RUN, self.settings.plan.terms.sites, 1 << 30)
        self.link = self._open.enter_context(
            LinkServer(self.home / "link.sock", self.gateway, RUN, self.settings.plan.terms.sites)
        )
        return self

    def run(self, *, silent=(), here=None, on_push=None):
        """Run a ServerApp in this process until it returns or dies, in a Flower run of its own."""
        self.grid = grid = PlayedFlower(self.sites, self.store, self.link.replied)
        grid.silent.update(silent)
        grid.on_push = on_push or grid.on_push
        # Doorbells are streams of the network's, which has contract tests of its own.
        self.gateway.connected = lambda: sorted(SITES if here is None else here)
        try:
            serve(grid, self.home / "link.sock", self.settings)
        finally:  # the next one is turned away until the gateway has seen this one go
            until(lambda: self.link.ended)

    def events(self):
        return [decode_event(line)[1] for _, line in read_events(self.folder / JOURNAL)]

    def close(self):
        self._open.close()


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
    signed = SignedPlan(terms=plan.terms, signature=signer.sign(plan.terms))
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
    """Kills the ServerApp at the journal's n-th write (from 0), before it or after it."""

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
