"""What a run begins with is its own from then on, and a model: not an upload, nor a memory."""

from __future__ import annotations

import numpy as np
import pytest

from fedfactory.contracts.errors import IntegrityError
from fedfactory.contracts.model import BlobRef
from fedfactory.coordinator.coordinator_config import COORDINATOR_FILE, load_coordinator_config
from fedfactory.coordinator.desk.submitting import Submitting
from fedfactory.coordinator.gateway.blobs import BlobStore, blob_path
from fedfactory.coordinator.run_settings import CENTRAL
from fedfactory.coordinator.running.checkpoints import MODELS
from fedfactory.coordinator.running.journal import JOURNAL, Journal
from fedfactory.coordinator.runs import Runs
from fedfactory.identity.roles import Peer, Role
from fedfactory.identity.signing import fingerprint
from fedfactory.rounds.events import ModelAggregated, RunStarted
from fedfactory.wire.arrays import write_arrays
from tests.unit.coordinator_submissions import (
    COORDINATOR,
    SIGNER,
    model,
    plan_of,
)

ANA = Peer(role=Role.OPERATOR, name="ana")


class Rig:
    """Submitting on a real store and real runs; every site is fit."""

    def __init__(self, folder):
        self.folder = folder
        self.store = BlobStore(folder / "blobs")
        self.runs = Runs(folder / "runs")
        (folder / COORDINATOR_FILE).write_text(f"name: {COORDINATOR}\nlisten: 127.0.0.1:0\n")
        self.submitting = Submitting(
            load_coordinator_config(folder, []),
            self.runs,
            key_of=lambda _: fingerprint(SIGNER.public_key),
            upload=self.store.find_upload,
            take=self.store.take_upload,
            unfit=lambda _: (),
            waiting=lambda: 0,
        )

    def upload(self, write=model):
        """Upload an array file as ana; return its reference."""
        path = self.folder / "sent"
        ref = write(path)
        self.store.receive(ANA, ref, 0, [path.read_bytes()])
        return ref

    def submit(self, run_id, initial, **more):
        return self.submitting.submit(ANA, plan_of(run_id, initial, **more))

    def model_of(self, run_id, ref):
        return blob_path(self.runs.find(run_id).folder / MODELS, ref.digest)


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def another(path):
    return write_arrays(path, {"weight": np.ones(16, dtype=np.float32)})


@pytest.mark.parametrize("announced", [1, 10_000])
def test_what_its_uploader_sends_later_does_not_reach_a_run(rig, announced):
    """One inode under two names would let an upload of the same digest empty a run's model."""
    ref = rig.upload()
    assert rig.submit("run", ref).run_id == "run"
    before = rig.model_of("run", ref).read_bytes()
    lying = BlobRef(digest=ref.digest, bytes=announced)
    with pytest.raises(IntegrityError):
        rig.store.receive(ANA, lying, 0, [b"x"])
    assert rig.model_of("run", ref).read_bytes() == before


def test_a_public_set_is_the_run_s_own_too(rig):
    initial, central = rig.upload(), rig.upload(another)
    told = rig.submitting.submit(ANA, plan_of("run", initial, central=central))
    assert told.run_id == "run", told.reason
    assert (rig.runs.find("run").folder / CENTRAL).stat().st_nlink == 1
    assert not list((rig.store.root / "arriving").iterdir())


def test_a_model_of_an_earlier_run_s_begins_another(rig):
    """Also one that the earlier run itself has not begun with yet."""
    ref = rig.upload()
    assert rig.submit("first", ref).run_id == "first"
    assert rig.submit("second", ref).run_id == "second"
    assert rig.model_of("second", ref).read_bytes() == rig.model_of("first", ref).read_bytes()


def test_a_strategy_s_state_is_nobody_s_model(rig):
    """It lies beside the models and may hold single sites' updates, which nobody downloads."""
    initial = rig.upload()
    assert rig.submit("first", initial).run_id == "first"
    run = rig.runs.find("first")
    made, state = (write(rig.folder / "made") for write in (model, another))
    for ref, write in ((made, model), (state, another)):
        write(rig.model_of("first", ref))
    with Journal.open(run.folder / JOURNAL) as journal:
        plan = run.taken.plan
        journal.append(
            [
                RunStarted(at=1.0, plan=plan, connected=()),
                ModelAggregated(at=2.0, round=1, model=made, state=state),
            ]
        )
    assert rig.submit("from-model", made).run_id == "from-model"
    refused = rig.submit("from-state", state)
    assert refused.run_id is None
    assert "has not been uploaded" in refused.reason
