"""Site and coordinator judge an update alike: the same norm, the same bound, to the bit."""

import dataclasses

import numpy as np
import pytest

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.model import BlobRef
from fedfactory.contracts.orders import Order
from fedfactory.contracts.privacy import PrivacySpent
from fedfactory.contracts.update_norms import norm_bound
from fedfactory.contracts.updates import Payload, Update
from fedfactory.coordinator.aggregating.aggregation import Unfit, verify_update
from fedfactory.coordinator.running.update_checks import bound_of, false_number
from fedfactory.privacy.sampling import noising, sampling
from fedfactory.wire.arrays import file_ref, spec_of, write_arrays
from fedfactory.wire.base_norm import read_base
from site_agents.egress import Cleared, HeldBack, check_update
from tests.policy_orders import PRIVACY, TERMS, order_of

SIZE = 1237
SIGMA = 1.2345678901234567


@pytest.fixture(params=[None, PRIVACY], ids=["plain", "dp_sgd"])
def asked(request):
    order: Order = dataclasses.replace(order_of(TERMS), privacy=request.param)
    return dataclasses.replace(TERMS, max_update_norm_l2=None, privacy=request.param), order


def answer(order, blob):
    spent = None
    if order.privacy is not None:
        once = sampling(order.training, SIZE)
        spent = PrivacySpent(
            epsilon_run=1.0, delta=1e-5, noise_multiplier=SIGMA, sample_rate=once.sample_rate,
            steps=once.steps, unit="row", accountant="RDP",
        )  # fmt: skip
    update = Update(
        work=order.key(), payload=Payload(form="delta", blob=blob), examples=SIZE, metrics={},
        seconds=1.0, privacy=spent,
    )  # fmt: skip
    return from_json(Update, to_json(update))  # as it came over the wire


def test_both_sides_come_to_the_same_bound(asked, tmp_path):
    terms, order = asked
    values = np.random.default_rng(3).standard_normal(50_001, dtype=np.float32)
    write_arrays(tmp_path / "base", {"a": values, "n": np.asarray([3])})
    base = read_base(tmp_path / "base", terms)
    update = answer(order, BlobRef(digest="sha256:" + "0" * 64, bytes=1))
    assert false_number(order, update, None) is None
    noise = None if order.privacy is None else noising(order.training, SIZE, SIGMA)
    at_the_site = norm_bound(terms, order.training, base, noise)
    assert bound_of(terms, order, base, update) == at_the_site


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_both_sides_take_the_same_norm_and_judge_it_alike(tmp_path, dtype):
    rng = np.random.default_rng(4)
    model = {
        "b": rng.standard_normal(70_003).astype(dtype),
        "a": rng.standard_normal(7).astype(dtype),
    }
    path = tmp_path / "update"
    ref, spec = write_arrays(path, model), spec_of(model)
    assert file_ref(path) == ref
    cleared = check_update(path, spec, ref, None)
    assert isinstance(cleared, Cleared)
    norm = cleared.norm_l2
    assert verify_update(path, spec, norm) == norm
    below = float(np.nextafter(norm, 0.0))
    assert isinstance(check_update(path, spec, ref, below), HeldBack)
    found = verify_update(path, spec, below)
    assert isinstance(found, Unfit)
    assert found.code == "bad_update_norm"
