"""DP-SGD in the worker: steps, sampling, noise, what comes after the noise, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from fedfactory.contracts.privacy import GradSampleMode
from fedfactory.privacy.chacha import KEY_BYTES, NoiseSource
from fedfactory.tasks.clipped_gradients import PrivateModelError
from fedfactory.tasks.examples import SiteData
from fedfactory.tasks.rehearsal import Passes
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import ModelMismatchError, Workload
from fedfactory.wire.arrays import read_arrays
from tests.private_descents import (
    MODES,
    fresh_source,
    mechanism,
    moved,
    network_and_data,
    silent_source,
    training,
)

ONE_IN_A_MILLION = 1e-6
NOBODY = torch.empty(0, 64), torch.empty(0, dtype=torch.int64)


class CountingSource(NoiseSource):
    """Counts what is drawn from it."""

    def __init__(self) -> None:
        super().__init__(os.urandom(KEY_BYTES))
        self.samples = 0
        self.noises = 0

    def poisson_sample(self, count: int, rate: float) -> NDArray[np.intp]:
        self.samples += 1
        return super().poisson_sample(count, rate)

    def fill_gaussians(self, out: NDArray[np.float64]) -> None:
        self.noises += 1
        super().fill_gaussians(out)


def opened(folder: Path, model: str = "mlp", records: int = 60) -> tuple[Workload, Path]:
    task = load_task("digits")
    examples = task.bundled({"model": model})
    data = SiteData(
        train=examples.take(np.arange(records)),
        test=examples.take(np.arange(records, records + 30)),
    )
    task.write_initial({"model": model}, 1, folder / "base")
    return task.open({"model": model}, data, "cpu"), folder / "base"


def one_pixel_network() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network whose one weight pair gets the same small gradient from each record."""
    network = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(network.weight)
    return network, torch.full((37, 1), 0.5), torch.zeros(37, dtype=torch.int64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.rule("22")
def test_nobody_drawn_is_a_noisy_step_of_the_declared_variance(mode: GradSampleMode) -> None:
    network, _, _ = network_and_data("digits mlp", 1)
    how = mechanism(
        noise_multiplier=2.0, clip_norm_l2=3.0, expected_batch=50.0, steps=1, grad_sample_mode=mode
    )
    step = moved(network, *NOBODY, how) / (2.0 * 3.0 / 50.0)
    low, high = stats.chi2.interval(1 - ONE_IN_A_MILLION, step.numel())
    assert low < float((step**2).sum()) < high
    assert stats.kstest(step.numpy(), "norm").pvalue > ONE_IN_A_MILLION


@pytest.mark.parametrize("mode", MODES)
def test_noise_has_the_same_variance_with_records(mode: GradSampleMode) -> None:
    network, x, y = network_and_data("digits mlp", 20)
    how = mechanism(noise_multiplier=0.5, expected_batch=10.0, grad_sample_mode=mode)
    clean = moved(network, x, y, how, source=silent_source())
    noise = (moved(network, x, y, how) - clean) / (0.5 / 10.0)
    low, high = stats.chi2.interval(1 - ONE_IN_A_MILLION, noise.numel())
    assert low < float((noise**2).sum()) < high


def test_noise_of_several_steps_adds_up() -> None:
    network, _, _ = network_and_data("digits mlp", 1)
    total = moved(network, *NOBODY, mechanism(steps=9)) / 3.0
    low, high = stats.chi2.interval(1 - ONE_IN_A_MILLION, total.numel())
    assert low < float((total**2).sum()) < high


@pytest.mark.rule("16")
def test_one_seed_in_every_generator_gives_other_noise_and_other_batches() -> None:
    network, x, y = network_and_data("digits mlp", 40)
    noisy, batches = mechanism(sample_rate=1.0), mechanism(sample_rate=0.5)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  it must not matter
        found.append(
            (moved(network, x, y, noisy), moved(network, x, y, batches, source=silent_source()))
        )
    (noise, batch), (other_noise, other_batch) = found
    assert float((noise == other_noise).double().mean()) < 1e-3
    assert not torch.equal(batch, other_batch)


def test_dead_units_show_noise_that_torchs_generator_cannot_repeat() -> None:
    network, _, _ = network_and_data("digits mlp", 1)
    torch.manual_seed(7)
    shown = moved(network, *NOBODY, mechanism())
    torch.manual_seed(7)
    sizes = [p.shape for p in network.parameters()]
    single = torch.cat([torch.normal(0.0, 1.0, size).flatten() for size in sizes])
    torch.manual_seed(7)
    four = torch.cat(
        [sum(torch.normal(0.0, 0.5, size) for _ in range(4)).flatten() for size in sizes]
    )
    bound = stats.norm.isf(ONE_IN_A_MILLION / 2) / shown.numel() ** 0.5
    for guess in (single, four):
        assert abs(np.corrcoef(shown.numpy(), guess.double().numpy())[0, 1]) < bound


def test_training_draws_from_no_torch_generator() -> None:
    network, x, y = network_and_data("digits mlp", 20)
    before = torch.random.get_rng_state()
    moved(network, x, y, mechanism(sample_rate=0.5, steps=3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3e38])
@pytest.mark.rule("21")
def test_a_record_that_is_not_finite_counts_as_null(mode: GradSampleMode, value: float) -> None:
    network, x, y = network_and_data("digits mlp", 9)
    how = mechanism(grad_sample_mode=mode)
    without = moved(network, x[1:], y[1:], how, source=silent_source())
    x[0] = value
    found = moved(network, x, y, how, source=silent_source())
    assert torch.allclose(found, without, atol=1e-6)
    assert float(found.norm()) > 1.0


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_nothing_finite_is_a_noisy_step(mode: GradSampleMode) -> None:
    network, x, y = network_and_data("digits mlp", 4)
    x[:] = float("inf")
    step = moved(network, x, y, mechanism(grad_sample_mode=mode))
    assert step.isfinite().all()
    low, high = stats.chi2.interval(1 - ONE_IN_A_MILLION, step.numel())
    assert low < float((step**2).sum()) < high


@pytest.mark.rule("1")
def test_the_rate_and_the_divisor_are_the_mechanisms_not_the_data_sets() -> None:
    network, x, y = one_pixel_network()
    how = mechanism(sample_rate=0.25, expected_batch=400.0)
    alone = float(moved(network, x[:1], y[:1], mechanism(), source=silent_source())[0])
    drawn = []
    for _ in range(150):
        step = float(moved(network, x, y, how, source=silent_source())[0])
        drawn.append(step * 400.0 / alone)
    assert np.allclose(drawn, np.round(drawn), atol=1e-3)
    low, high = stats.binom.interval(1 - ONE_IN_A_MILLION, 37 * 150, 0.25)
    assert low <= sum(np.round(drawn)) <= high


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.rule("2")
def test_a_unit_gives_one_row_a_step_however_many_it_holds(mode: GradSampleMode) -> None:
    network, x, y = one_pixel_network()
    how = mechanism(grad_sample_mode=mode)
    alone = float(moved(network, x[:1], y[:1], how, source=silent_source())[0])
    unit = np.repeat(np.array([4, 9, 11], np.int64), [30, 6, 1])
    step = float(moved(network, x, y, how, source=silent_source(), unit=unit)[0])
    assert step / alone == pytest.approx(3.0, rel=1e-4)


def test_a_units_row_is_drawn_afresh_at_each_step() -> None:
    _, x, y = network_and_data("digits mlp", 12)
    network = nn.Linear(64, 10)
    steps = [
        moved(network, x, y, mechanism(), source=silent_source(), unit=np.zeros(12, np.int64))
        for _ in range(60)
    ]
    singles = [
        moved(network, x[i : i + 1], y[i : i + 1], mechanism(), source=silent_source())
        for i in range(12)
    ]
    chosen = {min(range(12), key=lambda i: float((step - singles[i]).norm())) for step in steps}
    assert len(chosen) > 6


@pytest.mark.parametrize("mode", MODES)
def test_memory_for_one_record_at_a_time_gives_the_same_sum(mode: GradSampleMode) -> None:
    network, x, y = network_and_data("digits cnn", 21)
    how = mechanism(grad_sample_mode=mode)
    whole = moved(network, x, y, how, source=silent_source())
    pieces = moved(network, x, y, how, source=silent_source(), rows=1)
    assert torch.allclose(whole, pieces, atol=1e-6)


@pytest.mark.rule("22")
def test_exactly_the_steps_reserved_are_taken_whatever_the_order_says() -> None:
    network, x, y = network_and_data("digits mlp", 20)
    for steps in (1, 5):
        source = CountingSource()
        order = training(local_epochs=7, batch_size=2, max_steps=2)
        moved(network, x, y, mechanism(steps=steps, sample_rate=0.1), source=source, by=order)
        assert source.samples == steps
        assert source.noises == steps * len(list(network.parameters()))


@pytest.mark.rule("24")
def test_the_proximal_term_comes_after_clipping_and_noise() -> None:
    """Two steps on nobody: the second pulls back by mu times the first, which is far over the clip."""
    network, _, _ = network_and_data("digits mlp", 1)
    key = os.urandom(KEY_BYTES)
    first, both, pulled = (
        moved(
            network,
            *NOBODY,
            mechanism(steps=steps),
            source=NoiseSource(key),
            by=training(proximal_mu=mu),
        )
        for steps, mu in ((1, 0.0), (2, 0.0), (2, 0.25))
    )
    assert float(first.norm()) > 100.0
    assert torch.allclose(pulled, both - 0.25 * first, atol=1e-4)


@pytest.mark.rule("24")
def test_momentum_acts_on_noised_gradients() -> None:
    network, _, _ = network_and_data("digits mlp", 1)
    key = os.urandom(KEY_BYTES)
    first, both, carried = (
        moved(
            network,
            *NOBODY,
            mechanism(steps=steps),
            source=NoiseSource(key),
            by=training(momentum=m),
        )
        for steps, m in ((1, 0.0), (2, 0.0), (2, 0.5))
    )
    assert torch.allclose(carried, both + 0.5 * first, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(256), nn.BatchNorm1d(256, affine=False), nn.SyncBatchNorm(256)]
)
@pytest.mark.rule("23")
def test_batch_norm_is_refused_and_the_error_says_what_to_do(
    mode: GradSampleMode, norm: nn.Module
) -> None:
    network = nn.Sequential(nn.Linear(64, 256), norm, nn.Linear(256, 10))
    x, y = torch.rand(4, 64), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(PrivateModelError, match=r"layer '1' is a .*BatchNorm.*group norm"):
        moved(network, x, y, mechanism(grad_sample_mode=mode))


def test_ghost_refuses_a_linear_layer_over_a_sequence_and_names_the_other_mode() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    network = nn.Sequential(nn.Linear(3, 5), Mean(), nn.Linear(5, 2))
    x, y = torch.rand(4, 6, 3), torch.tensor([0, 1, 0, 1])
    assert float(moved(network, x, y, mechanism(), source=silent_source()).norm()) > 0
    with pytest.raises(PrivateModelError, match="grad_sample_mode=hooks"):
        moved(network, x, y, mechanism(grad_sample_mode="ghost"))


def test_a_layer_used_by_no_record_is_refused_also_when_nobody_is_drawn() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(64, 10), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    x, y = torch.rand(4, 64), torch.zeros(4, dtype=torch.int64)
    for drawn in (4, 0):
        with pytest.raises(PrivateModelError, match="no gradient for each record"):
            moved(Idle(), x[:drawn], y[:drawn], mechanism())


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_a_record_stays_on_the_network(mode: GradSampleMode) -> None:
    network, x, y = network_and_data("digits cnn", 8)
    kept = [set(module.__dict__) for module in network.modules()]
    moved(network, x, y, mechanism(grad_sample_mode=mode))
    assert [set(module.__dict__) for module in network.modules()] == kept
    for parameter in network.parameters():
        assert parameter.grad is None
        held = [v for v in vars(parameter).values() if isinstance(v, Tensor)]
        assert not held


def test_a_step_that_breaks_off_leaves_no_sum_without_noise() -> None:
    network, x, y = network_and_data("digits mlp", 8)

    class Broken(NoiseSource):
        def fill_gaussians(self, out: NDArray[np.float64]) -> None:
            raise MemoryError

    with pytest.raises(MemoryError):
        moved(network, x, y, mechanism(), source=Broken(os.urandom(KEY_BYTES)))
    for parameter in network.parameters():
        assert not [v for v in vars(parameter).values() if isinstance(v, Tensor)]


def test_modes_and_plain_training_take_turns_on_one_warm_model(tmp_path: Path) -> None:
    workload, base = opened(tmp_path, "cnn")
    plain = workload.train(base=base, out=tmp_path / "u", training=training(lr=0.1), seed=1)
    for mode in (*MODES, *MODES):
        workload.train_privately(
            base=base,
            out=tmp_path / "p",
            training=training(),
            mechanism=mechanism(grad_sample_mode=mode),
        )
    again = workload.train(base=base, out=tmp_path / "u", training=training(lr=0.1), seed=1)
    assert plain.update == again.update


def test_an_update_moves_every_parameter_and_no_metric_comes_of_it(tmp_path: Path) -> None:
    workload, base = opened(tmp_path)
    outcome = workload.train_privately(
        base=base, out=tmp_path / "u", training=training(), mechanism=mechanism()
    )
    assert outcome.metrics == {}
    update = read_arrays(tmp_path / "u")
    assert set(update) == {t.name for t in workload.spec.tensors}
    assert all((array != 0).any() for array in update.values())


@pytest.mark.rule("16")
def test_two_workers_with_one_run_seed_send_different_updates(tmp_path: Path) -> None:
    updates = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        workload, base = opened(tmp_path / name)
        torch.manual_seed(1)
        workload.train_privately(
            base=base, out=tmp_path / name / "u", training=training(), mechanism=mechanism()
        )
        updates.append(read_arrays(tmp_path / name / "u"))
    for name, array in updates[0].items():
        assert not np.isclose(array, updates[1][name], rtol=1e-6, atol=0).all()


@pytest.mark.rule("23")
def test_buffers_of_a_model_do_not_leave(tmp_path: Path) -> None:
    """A layer that counts its records in a buffer: the update says it did not move."""
    from fedfactory.tasks.learning import Learning, arrays_of
    from fedfactory.tasks.objectives import CLASSIFICATION
    from fedfactory.wire.arrays import write_arrays

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return x

    network = nn.Sequential(Counting(), nn.Linear(64, 10))
    examples = load_task("digits").bundled({"model": "mlp"})
    part = examples.take(np.arange(20))
    workload = Learning(
        network,
        SiteData(train=part, test=part),
        "cpu",
        CLASSIFICATION,
        lambda _: Passes(rows=16, threads=1),
    )
    write_arrays(tmp_path / "base", {k: v.copy() for k, v in arrays_of(network).items()})
    workload.train_privately(
        base=tmp_path / "base", out=tmp_path / "u", training=training(), mechanism=mechanism()
    )
    assert float(network[0].seen) >= 20.0  # it did count them
    assert read_arrays(tmp_path / "u")["0.seen"] == 0.0


def test_a_base_of_another_model_is_refused_before_data_is_touched(tmp_path: Path) -> None:
    workload, _ = opened(tmp_path)
    load_task("digits").write_initial({"model": "cnn"}, 1, tmp_path / "other")
    with pytest.raises(ModelMismatchError, match="does not fit"):
        workload.train_privately(
            base=tmp_path / "other", out=tmp_path / "u", training=training(), mechanism=mechanism()
        )
    assert not (tmp_path / "u").exists()


def test_echo_refuses_privacy_and_says_what_to_do(tmp_path: Path) -> None:
    from fedfactory.contracts.errors import UsageError

    workload = load_task("echo").open({"megabytes": 1}, None, "none")
    with pytest.raises(UsageError, match="privacy=none"):
        workload.train_privately(
            base=tmp_path / "b", out=tmp_path / "u", training=training(), mechanism=mechanism()
        )


def test_fresh_sources_differ() -> None:
    first, second = np.empty(4, np.uint64), np.empty(4, np.uint64)
    fresh_source().fill_words(first)
    fresh_source().fill_words(second)
    assert not np.array_equal(first, second)
