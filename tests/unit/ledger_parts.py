"""What ledger tests write: small orders, charges, updates; and a history with two of everything."""

from __future__ import annotations

import time

from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import WorkKey
from fedfactory.contracts.updates import Payload, Update
from fedfactory.privacy.accounting import Cost
from fedfactory.privacy.entries import Charge, RunAdmitted, RunKey
from site_agents.ledger import Ledger

LINEAGE = "patients"
DELTA = 1e-5
COST = Cost(noise_multiplier=2.0, sample_rate=1.0)
DIGEST = "sha256:" + "0" * 64


def run_key(run="run-1"):
    return RunKey(coordinator="lead", run_id=run)


def work(number=1, *, run="run-1", kind="train", digest="one"):
    return WorkKey(
        coordinator="lead",
        run_id=run,
        round=number,
        kind=kind,
        site="cesga",
        order_digest=digest,
    )


def charge(steps=1, cost=COST):
    return Charge(cost=cost, steps=steps)


def admitted(run="run-1", *, steps=10, cost=COST, lineage=LINEAGE, expires_at=None):
    return RunAdmitted(
        run=run_key(run),
        terms_digest="plan",
        lineage=lineage,
        unit="row",
        planned=(Charge(cost=cost, steps=steps),),
        expires_at=time.time() + 1e6 if expires_at is None else expires_at,
    )


def update(key, seconds=1.0):
    payload = None
    if key.kind == "train":
        payload = Payload(form="delta", blob=BlobRef(digest=DIGEST, bytes=3))
    return Update(
        work=key, payload=payload, examples=5, metrics={"loss": 0.5}, seconds=seconds, privacy=None
    )


def make(home, **lineages):
    Ledger.create(home, lineages or {LINEAGE: DELTA}, actor="ada")
    return home


def make_used(home, rounds=3):
    """A ledger with one run of which `rounds` rounds are done; return its folder."""
    make(home)
    ledger = Ledger.open(home)
    ledger.admit(admitted())
    for number in range(1, rounds + 1):
        ledger.reserve(work(number), LINEAGE, charge())
        ledger.commit(work(number), update(work(number)))
    ledger.close()
    return home


def epsilon(ledger, run="run-1"):
    return ledger.budget.epsilon_run(ledger.accountant, run_key(run))
