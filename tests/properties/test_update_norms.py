"""The bound of an update's norm: the same number on both sides, far above every honest update."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfactory.contracts.bounds import MOST
from fedfactory.contracts.norms import LANES, NormL2
from fedfactory.contracts.orders import TrainParameters
from fedfactory.contracts.privacy import MAX_NOISE, MAX_PUBLIC_SIZE, Mechanism, PrivacyPlan
from fedfactory.contracts.update_norms import Base, norm_bound
from fedfactory.privacy.sampling import noising, sampling
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.table import load_task
from fedfactory.wire.arrays import ArrayFile, norm_l2
from fedfactory.wire.base_norm import read_base
from tests.policy_orders import TERMS
from tests.private_descents import NETWORKS

RECORDS = 60
CLIP = 1.0


def terms_of(**changes):
    return dataclasses.replace(TERMS, **{"max_update_norm_l2": None, "privacy": None, **changes})


def training(**changes):
    values = {"local_epochs": 2, "batch_size": 32, "lr": 0.1, "momentum": 0.9}
    return TrainParameters(**{**values, "proximal_mu": 0.0, "max_steps": None, **changes})


def private(sigma):
    return PrivacyPlan(
        target_epsilon=None, noise_multiplier=sigma, delta=1e-5, clip_norm_l2=CLIP,
        grad_sample_mode="hooks", evaluation_noise_multiplier=None, evaluation_loss_clip=1.0,
    )  # fmt: skip


def opened(folder, name, seed):
    task_name, parameters = NETWORKS[name]
    task = load_task(task_name)
    parameters = task.check(parameters)
    examples = task.bundled(parameters)
    data = SiteData(
        train=examples.take(np.arange(RECORDS)), test=examples.take(np.arange(RECORDS, RECORDS + 9))
    )
    task.write_initial(parameters, seed, folder / "base")
    return task.open(parameters, data, "cpu"), folder / "base"


def norm_of(path):
    with ArrayFile(path) as file:
        return norm_l2(file)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("lr", [0.01, 0.1])
def test_honest_plain_updates_are_far_below_the_bound(tmp_path, name, lr):
    workload, base = opened(tmp_path, name, seed=1)
    order, terms = training(lr=lr), terms_of()
    workload.train(base=base, out=tmp_path / "update", training=order, seed=1)
    bound = norm_bound(terms, order, read_base(base, terms), None)
    assert norm_of(tmp_path / "update") < bound / 3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sigma", [0.5, 5.0, 100.0])
@pytest.mark.rule("31")
def test_honest_private_updates_are_below_the_bound(tmp_path, name, sigma):
    workload, base = opened(tmp_path, name, seed=1)
    order, terms, public = training(), terms_of(privacy=private(sigma)), RECORDS * 5 // 4
    once = sampling(order, public)
    mechanism = Mechanism(
        noise_multiplier=sigma, sample_rate=once.sample_rate, steps=once.steps,
        expected_batch=once.expected_batch, clip_norm_l2=CLIP, grad_sample_mode="hooks",
    )  # fmt: skip
    out = tmp_path / "update"
    workload.train_privately(base=base, out=out, training=order, mechanism=mechanism)
    bound = norm_bound(terms, order, read_base(base, terms), noising(order, public, sigma))
    assert norm_of(tmp_path / "update") < bound / 1.5


@settings(max_examples=60, deadline=None)
@given(
    lr=st.floats(1e-3, 1.0), momentum=st.floats(0.0, 0.99), steps=st.integers(1, 30),
    units=st.integers(1, 60), sigma=st.floats(0.1, 1000.0), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_no_honest_descent_reaches_the_rule(*, lr, momentum, steps, units, sigma, seed):
    """Gradients as large and as aligned as clipping allows, every unit in every step."""
    rng, dimensions = np.random.default_rng(seed), 40
    order = training(lr=lr, momentum=momentum, max_steps=steps, batch_size=1, local_epochs=10**6)
    public = math.ceil(units * 5 / 4)
    found = noising(order, public, sigma)
    bound = norm_bound(
        terms_of(privacy=private(sigma)), order, Base(norm_l2=0.0, elements=dimensions), found
    )
    direction = np.zeros(dimensions)
    direction[0] = 1.0
    moved, velocity = np.zeros(dimensions), np.zeros(dimensions)
    for _ in range(found.steps):
        noise = sigma * CLIP * rng.standard_normal(dimensions)
        gradient = (found.units * CLIP * direction + noise) / found.expected_batch
        velocity = momentum * velocity + gradient
        moved -= lr * velocity
    assert np.linalg.norm(moved) < bound


@given(
    size=st.integers(1, MAX_PUBLIC_SIZE), sigma=st.floats(1e-3, 1e6), lr=st.floats(1e-6, 1000.0),
    momentum=st.floats(0.0, 1 - 2**-53), epochs=st.integers(1, 10**6), batch=st.integers(1, 10**6),
    elements=st.integers(0, MOST),
)  # fmt: skip
def test_whatever_a_site_states_the_bound_is_finite(
    *, size, sigma, lr, momentum, epochs, batch, elements
):
    """And its own noise counts for at most MAX_NOISE."""
    order = training(lr=lr, momentum=momentum, local_epochs=epochs, batch_size=batch)
    terms, base = terms_of(privacy=private(1.0)), Base(norm_l2=0.0, elements=elements)
    bound = norm_bound(terms, order, base, noising(order, size, sigma))
    assert math.isfinite(bound)
    assert bound > 0
    assert bound <= norm_bound(terms, order, base, noising(order, size, max(sigma, MAX_NOISE)))


def test_a_signed_bound_is_the_bound():
    terms, base = terms_of(max_update_norm_l2=3.5), Base(norm_l2=100.0, elements=10)
    assert norm_bound(terms, training(), base, None) == 3.5
    assert norm_bound(terms, training(), base, noising(training(), 100, 1.0)) == 3.5


@pytest.mark.parametrize(("norm", "bound"), [(0.0, 10.0), (0.5, 10.0), (1.0, 10.0), (7.0, 70.0)])
def test_without_privacy_the_bound_is_ten_times_the_base(norm, bound):
    assert norm_bound(terms_of(), training(), Base(norm_l2=norm, elements=3), None) == bound


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3 * LANES), min_size=1, max_size=3),
    pieces=st.sampled_from([1, 2, 4, 7]), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_norm_does_not_depend_on_how_a_file_is_read(shape, pieces, seed):
    """Bit for bit: by pieces of any multiple of LANES."""
    rng = np.random.default_rng(seed)
    tensors = [
        rng.standard_normal(n, dtype=np.float32) * 10.0 ** rng.integers(-9, 9) for n in shape
    ]
    whole, cut = NormL2(), NormL2()
    for values in tensors:
        whole.add(values)
        for start in range(0, values.size, pieces * LANES):
            cut.add(values[start : start + pieces * LANES])
    assert whole.value() == cut.value()
    exact = math.sqrt(math.fsum(float(v) ** 2 for values in tensors for v in values[:50_000]))
    if all(n <= 50_000 for n in shape):
        assert whole.value() == pytest.approx(exact, rel=1e-12)


def test_the_norm_is_the_documented_order_of_additions():
    """The order in words (contracts/norms.py), in plain Python: the same bits."""
    values = np.random.default_rng(5).standard_normal(3 * LANES + 17).astype(np.float32)
    norm = NormL2()
    norm.add(values)
    lanes = [0.0] * LANES
    for index, value in enumerate(values.tolist()):
        lanes[index % LANES] += value * value
    half = LANES // 2
    while half:
        lanes = [lanes[lane] + lanes[lane + half] for lane in range(half)]
        half //= 2
    assert norm.value() == math.sqrt(lanes[0])
