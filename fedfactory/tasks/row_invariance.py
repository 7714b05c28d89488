"""Is a record's share the same bits, wherever it stands in a pass and whatever stands beside it?

Sensitivity rests on it: the noise is for one record's clipped gradient, and if others' gradients
change when it leaves, the sum moves by more. Nobody can read that from a kernel's source, so it is
tried: through the functions that train and evaluate, with weights that amplify rounding (after
`A - (E + O)`, where E and O are the halves of A, only rounding is left).

What fails with many rows is tried with one row and one thread, which is slower and needs no more
than kernels that repeat. What fails there too gets no private work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn

from fedfactory.tasks.clipped_gradients import open_gradients
from fedfactory.tasks.columns import Categorical
from fedfactory.tasks.examples import DataSchema
from fedfactory.tasks.fixed_rows import affordable_rows
from fedfactory.tasks.kernels import deterministic_kernels
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.rehearsal import Passes, Rehearsal
from fedfactory.tasks.step_randomness import repeat_randomness
from fedfactory.tasks.task import UnstableKernelsError

# What each row's share is computed from: tensors (rows, ...).
Shares = list[Tensor]
# One pass of x (rows, *features) and y (rows,).
Probe = Callable[[Tensor, Tensor], Shares]

_SEED: Final = 20_111_206  # of the trial alone: nothing of it is used for work
_SCALE: Final = 1.0e3
_GAIN: Final = 1.0e4
_DROPOUTS: Final = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU),
)


def settle_passes(
    network: nn.Module, objective: Objective, schema: DataSchema, rehearsal: Rehearsal
) -> Passes:
    """Return the most rows up to `rehearsal.rows` with which a record's share is its own; else 1.

    The network's weights are used up.

    Raises:
        PrivateModelError: the model cannot be trained record by record.
        UnstableKernelsError: not even one row at a time repeats.
    """
    reason = ""
    threads = torch.get_num_threads()
    with _probe(network, objective, rehearsal) as probe:
        trial = _Trial(network, probe, objective, schema)
        rows = affordable_rows(rehearsal.rows, trial.record_bytes(), trial.device.type)
        for passes in (Passes(rows=rows, threads=threads), Passes(rows=1, threads=1)):
            with deterministic_kernels(passes.threads):
                found = trial.difference(passes.rows)
            if found is None:
                return passes
            reason = reason or found
    raise UnstableKernelsError(
        f"privacy=dp_sgd: a record's share is not its own on this device: {reason}"
    )


@contextmanager
def _probe(network: nn.Module, objective: Objective, rehearsal: Rehearsal) -> Iterator[Probe]:
    """Lend the function under trial."""
    if rehearsal.kind == "evaluate":
        network.eval()
        yield lambda x, y: _measured(network, objective, x, y)
        return
    gradients = open_gradients(network, objective, rehearsal.grad_sample_mode)

    def probe(x: Tensor, y: Tensor) -> Shares:
        with gradients.by_record(x, y) as found:
            return [part.clone() for one in found for part in one.parts]

    try:
        yield probe
    finally:
        gradients.close()


@torch.inference_mode()
def _measured(network: nn.Module, objective: Objective, x: Tensor, y: Tensor) -> Shares:
    outputs = network(x)
    return [objective.losses(outputs, y), objective.scores(outputs, y)]


class _Trial:
    """A network under trial, and the records that it is tried with."""

    def __init__(
        self, network: nn.Module, probe: Probe, objective: Objective, schema: DataSchema
    ) -> None:
        self._network = network
        self._probe = probe
        self._objective = objective
        self._schema = schema
        self._generator = torch.Generator().manual_seed(_SEED)
        self.device = next(network.parameters()).device

    def record_bytes(self) -> int:
        """Return the memory that one record's gradients, or measures, take."""
        return sum(part.nbytes for part in self._probe(*self._nulls(1)))

    def difference(self, rows: int) -> str | None:
        """Return the first thing found that changes a record's share, or None."""
        before = {name: b.clone() for name, b in self._network.named_buffers()}
        for fill in (_random, _cancelling):
            self._fill(fill)
            try:
                found = next(self._differences(rows), None)
            except RuntimeError as error:  # an operation that has no deterministic form
                return str(error).partition("\n")[0]
            if found is not None:
                return found
        for name, buffer in self._network.named_buffers():
            if not _same(buffer[None], before[name][None]):
                return f"buffer '{name}' keeps something of the records"
        return None

    def _differences(self, rows: int) -> Iterator[str]:
        """Try one record at every position, alone and beside others; say what made a difference."""
        record = self._examples(1)
        everywhere = torch.arange(rows, device=self.device)
        with _without_dropout(self._network):
            alone = self._beside(record, everywhere[:1], self._nulls(rows))
            for kind, others in self._neighbours(rows):
                for start in range(min(2, rows)):
                    found = self._beside(record, everywhere[start::2], others)
                    if not all(map(_same, found, alone)):
                        yield f"it follows the record's position, or {kind} records beside it"

    def _beside(
        self, record: tuple[Tensor, Tensor], at: Tensor, others: tuple[Tensor, Tensor]
    ) -> Shares:
        """Return the record's share at each of the positions `at`, where it is among others."""
        x, y = (t.clone() for t in others)
        x[at], y[at] = record
        repeat_randomness(_SEED)
        return [part[at] for part in self._probe(x, y)]

    def _neighbours(self, rows: int) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        numbers = torch.tensor(
            [not isinstance(column, Categorical) for column in self._schema.columns]
        )
        yield "null", self._nulls(rows)
        yield "other", self._examples(rows)
        x, y = self._examples(rows)
        x[:, numbers] *= 1e30
        yield "huge", (x, y)
        x, y = self._examples(rows)
        x[:, numbers] = torch.inf
        x[::3, numbers] = torch.nan
        yield "infinite", (x, y)

    def _nulls(self, rows: int) -> tuple[Tensor, Tensor]:
        x = torch.zeros(rows, *self._schema.features, device=self.device)
        return x, torch.zeros(rows, dtype=self._objective.y_type, device=self.device)

    def _examples(self, rows: int) -> tuple[Tensor, Tensor]:
        """Return records of the schema's form: its categories, and numbers from -1 to 1."""
        x = torch.rand(rows, *self._schema.features, generator=self._generator) * 2.0 - 1.0
        for number, column in enumerate(self._schema.columns):
            if isinstance(column, Categorical):
                x[:, number] = self._whole(len(column.categories), x[:, number].shape)
        y = self._whole(self._schema.classes or 2, (rows,))
        return x.to(self.device), y.to(self.device, self._objective.y_type)

    def _whole(self, below: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(below, shape, generator=self._generator).float()

    @torch.no_grad()
    def _fill(self, fill: Callable[[Tensor, bool], Tensor]) -> None:
        """Give matrices and kernels other weights; biases and scales stay as they were made."""
        first = True
        for parameter in self._network.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                values = torch.randn(parameter.shape, generator=self._generator)
                parameter.copy_(fill(values, first))
                first = False


def _random(values: Tensor, is_first: bool) -> Tensor:
    del is_first
    return values


def _cancelling(values: Tensor, is_first: bool) -> Tensor:
    """Return weights (out, in, ...) behind which only rounding is left.

    The first layer's outputs come in threes, A, E and O with A = E + O, and a later one's weights
    are (1, -1, -1) times a gain for each three.
    """
    if is_first:
        sizes = _SCALE * (0.5 + values.abs().fmod(1.0))
        half = values > 0.0
        for third, mask in enumerate((torch.ones_like(half), half, ~half)):
            count = len(values[third::3])
            sizes[third::3] = sizes[::3][:count] * mask[::3][:count]
        return sizes
    signs = torch.full(values.shape[1:2], -_GAIN)
    signs[::3] = _GAIN
    signs[len(signs) // 3 * 3 :] = 0.0
    return values[:, :1].sign() * signs.view(1, -1, *[1] * (values.dim() - 2)).expand_as(values)


def _same(found: Tensor, one: Tensor) -> bool:
    """Whether all rows of `found` are the one row of `one`, what is no number included."""
    equal = (found == one) | ((found != found) & (one != one))  # noqa: PLR0124
    return bool(equal.all())


@contextmanager
def _without_dropout(network: nn.Module) -> Iterator[None]:
    """Keep dropout out of the trial: its masks differ from row to row, as they should."""
    dropping = [m for m in network.modules() if isinstance(m, _DROPOUTS) and m.training]
    for layer in dropping:
        layer.eval()
    try:
        yield
    finally:
        for layer in dropping:
            layer.train()
