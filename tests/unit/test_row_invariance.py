"""The trial before private work: it finds what lets a record change another's share."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from fedfactory.contracts.privacy import GradSampleMode
from fedfactory.privacy.sampling import Sampling, evaluation_pass_rows
from fedfactory.tasks.clipped_gradients import PrivateModelError, open_gradients
from fedfactory.tasks.digits import SCHEMA
from fedfactory.tasks.fixed_rows import FixedRows, affordable_rows
from fedfactory.tasks.kernels import deterministic_kernels
from fedfactory.tasks.objectives import CLASSIFICATION
from fedfactory.tasks.rehearsal import Passes, Rehearsal
from fedfactory.tasks.row_invariance import settle_passes
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import UnstableKernelsError
from tests.private_descents import MODES, NETWORKS


class Layer(nn.Module):
    """A digits network behind something done to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Mixing(Layer):
    """Subtracts the batch's mean, as a batch norm without parameters does."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x - x.nan_to_num().mean(0))


class FirstIsSpecial(Layer):
    """Gives the first row of a pass another result: its position matters."""

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.ones(len(x), 1)
        scale[0] = 1.0 + 2.0**-20
        return self.inner(x * scale)


class Remembering(Layer):
    """Keeps a running mean of its records, outside of what is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.Identity()
        self.memory.register_buffer("mean", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.memory.mean += x.nan_to_num().clamp(-1, 1).mean(0)
        return self.inner(x)


class Looking(Layer):
    """Adds what the pass before was, which no buffer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.before = torch.zeros(64)

    def forward(self, x: Tensor) -> Tensor:
        seen, self.before = self.before, x.nan_to_num().clamp(-1, 1).mean(0).detach()
        return self.inner(x + seen)


class Unrepeatable(Layer):
    """Its result is another one each time."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Unrepeatable.calls += 1
        return self.inner(x * (1.0 + 2.0**-20 * Unrepeatable.calls))


class SecretlyRandom(Layer):
    """Drops pixels by a function, where no layer can be asked not to."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(nn.functional.dropout(x, training=self.training))


class Gated(Layer):
    """Mixes once a buffer, which comes with a base model, is not 0 any more."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Identity()
        self.gate.register_buffer("open", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.gate.open * x.nan_to_num().clamp(-1, 1).mean(0))


class MixingBrightest(Layer):
    """Lets only records that reach the end of the columns' range see the others."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.amax(1, keepdim=True) > 0.9 * SCHEMA.columns[0].high  # type: ignore[union-attr]
        return self.inner(x + bright * x.nan_to_num().clamp(-1, 1).mean(0))


class LookingUp(Layer):
    """Looks up vectors by whole numbers: an error for numbers beyond the columns' range."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.table(x.long()).mean(2))


class Shortening(Layer):
    """Looks vectors up, and shortens in place, without noise, those that records ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 8, max_norm=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.table(x.nan_to_num().clamp(0, 16).long()).mean(2))


class Squeezing(Layer):
    """Loses the axis of records where there is one record."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).squeeze()


def settled(network: nn.Module, mode: GradSampleMode = "hooks", rows: int = 32) -> Passes:
    rehearsal = Rehearsal(kind="train", rows=rows, grad_sample_mode=mode)
    return settle_passes(network, CLASSIFICATION, SCHEMA, rehearsal)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("mode", MODES)
def test_every_bundled_model_goes_in_full_passes_here(name: str, mode: GradSampleMode) -> None:
    task, parameters = NETWORKS[name]
    for kind in ("train", "evaluate"):
        rehearsal = Rehearsal(kind=kind, rows=48, grad_sample_mode=mode)  # type: ignore[arg-type]
        assert load_task(task).rehearse(parameters, "cpu", rehearsal).rows == 48


@pytest.mark.parametrize("kind", [Mixing, FirstIsSpecial, Gated, MixingBrightest])
@pytest.mark.parametrize("work", ["train", "evaluate"])
@pytest.mark.rule("19")
def test_a_network_in_which_records_meet_goes_one_at_a_time(
    kind: type[nn.Module], work: str
) -> None:
    rehearsal = Rehearsal(kind=work, rows=32, grad_sample_mode="hooks")  # type: ignore[arg-type]
    found = settle_passes(kind(), CLASSIFICATION, SCHEMA, rehearsal)
    assert found == Passes(rows=1, threads=1)


@pytest.mark.parametrize("width", [3, 7])
@pytest.mark.parametrize("act", [nn.ReLU, nn.Softplus, nn.SiLU])
@pytest.mark.rule("19")
def test_kernels_that_round_the_last_rows_apart_go_one_at_a_time(
    act: type[nn.Module], width: int
) -> None:
    # Which widths a kernel rounds apart, the processor decides: all moves by one pass' rows tell.
    network = nn.Sequential(nn.Linear(64, width), act(), nn.Linear(width, 10))
    x, y = torch.rand(48, 64), torch.arange(48) % 10

    def shares(shift: int) -> list[Tensor]:
        with gradients.by_record(x.roll(shift, 0), y.roll(shift, 0)) as found:
            return [part.roll(-shift, 0) for one in found for part in one.parts]

    gradients = open_gradients(network, CLASSIFICATION, "hooks")
    with deterministic_kernels(torch.get_num_threads()):
        home = shares(0)
        differ = sum(not all(map(torch.equal, home, shares(shift))) for shift in range(1, 48))
    gradients.close()
    if differ > 12:
        assert settled(network, rows=48).rows == 1


def test_masks_that_cannot_be_switched_off_go_one_at_a_time() -> None:
    assert settled(SecretlyRandom()).rows == 1


def test_dropout_layers_go_in_full_passes_and_stay_on() -> None:
    network = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10))
    assert settled(network).rows == 32
    assert network[1].training


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Remembering, "buffer 'memory.mean'"), (Unrepeatable, "position"), (Looking, "position")],
)
@pytest.mark.rule("19")
def test_what_is_not_its_own_even_alone_gets_no_private_work(
    kind: type[nn.Module], why: str
) -> None:
    with pytest.raises(UnstableKernelsError, match=why):
        settled(kind())


@pytest.mark.rule("19")
def test_a_lookup_that_shortens_vectors_in_place_gets_no_private_work() -> None:
    for kind, why in (("train", "max_norm"), ("evaluate", "parameter 'table.weight'")):
        rehearsal = Rehearsal(kind=kind, rows=32, grad_sample_mode="hooks")  # type: ignore[arg-type]
        with pytest.raises(PrivateModelError, match=why):
            settle_passes(Shortening(), CLASSIFICATION, SCHEMA, rehearsal)


def test_a_lookup_of_whole_numbers_goes_in_full_passes() -> None:
    assert settled(LookingUp()).rows == 32


def test_a_network_that_cannot_take_one_record_is_refused_with_the_reason() -> None:
    with pytest.raises(PrivateModelError, match="one record of zeros: RuntimeError: size mismatch"):
        settled(Squeezing())


def test_weights_made_of_other_parameters_are_refused_before_anything() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        network = nn.Sequential(nn.utils.weight_norm(nn.Linear(64, 10)))
    with pytest.raises(PrivateModelError, match="no gradient for each record"):
        settled(network)


def test_a_model_that_cannot_be_trained_by_record_is_refused_before_anything() -> None:
    with pytest.raises(PrivateModelError, match="BatchNorm"):
        load_task("digits").rehearse(
            {"model": "cnn_bn"}, "cpu", Rehearsal(kind="train", rows=16, grad_sample_mode="hooks")
        )


def test_ghost_refuses_what_it_has_no_factors_for_before_anything() -> None:
    class Sequence(Layer):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.step(x.view(-1, 8, 8)).flatten(1))

    assert settled(Sequence()).rows == 32
    with pytest.raises(PrivateModelError, match="grad_sample_mode=hooks"):
        settled(Sequence(), mode="ghost")


@pytest.mark.parametrize(
    ("expected", "rate", "rows"),
    [(64.0, 64 / 479, 80), (479.0, 1.0, 480), (1.0, 0.001, 16), (0.5, 0.01, 16), (200.0, 0.5, 224)],
)
@pytest.mark.rule("1")
def test_rows_follow_public_numbers_alone(expected: float, rate: float, rows: int) -> None:
    assert Sampling(sample_rate=rate, steps=1, expected_batch=expected).pass_rows == rows


def test_an_evaluations_rows_hold_all_public_records() -> None:
    assert [evaluation_pass_rows(n) for n in (1, 16, 17)] == [16, 16, 32]


@pytest.mark.parametrize(
    ("wanted", "record_bytes", "rows"),
    [(80, 1000, 80), (480, 100_000, 240), (4096, 1, 512), (64, 1 << 24, 16), (64, 1 << 30, 1)],
)
def test_rows_are_fewer_if_memory_asks(wanted: int, record_bytes: int, rows: int) -> None:
    assert affordable_rows(wanted, record_bytes, "cpu") == rows


@pytest.mark.parametrize("drawn", [0, 1, 7, 8, 9, 16, 17])
def test_passes_give_each_drawn_record_once_and_nulls_for_the_rest(drawn: int) -> None:
    x, y = torch.arange(1.0, 21.0)[:, None], torch.arange(1, 21)
    found = []
    for rows_x, rows_y, count in FixedRows(x, y, 8).passes(torch.arange(drawn)):
        assert rows_x.shape == (8, 1)
        assert not rows_x[count:].any()
        assert not rows_y[count:].any()
        found += rows_y[:count].tolist()
    assert found == y[:drawn].tolist()
