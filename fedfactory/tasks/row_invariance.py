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
from contextlib import contextmanager, suppress
from typing import Final

import torch
from torch import Tensor, nn

from fedfactory.contracts.errors import FedfactoryError
from fedfactory.tasks.clipped_gradients import PrivateModelError, open_gradients
from fedfactory.tasks.examples import DataSchema
from fedfactory.tasks.fixed_rows import affordable_rows
from fedfactory.tasks.kernels import deterministic_kernels
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.rehearsal import Passes, Rehearsal
from fedfactory.tasks.step_randomness import repeat_randomness
from fedfactory.tasks.task import UnstableKernelsError
from fedfactory.tasks.trial_records import Records, TrialRecords

# What each row's share is computed from: tensors (rows, ...).
Shares = list[Tensor]
# One pass of x (rows, *features) and y (rows,).
Probe = Callable[[Tensor, Tensor], Shares]

_SEED: Final = 20_111_206  # of the trial alone: nothing of it is used for work
_SCALE: Final = 1.0e3
_GAIN: Final = 1.0e4
# By how many positions records are moved, of one weight filling. A kernel rounds apart the rows at
# the end of its vectors, or of a thread's part, and one value in ten shows it.
_SHIFTS: Final = 15
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
        self._records = TrialRecords(schema, objective, _SEED)
        self._generator = torch.Generator().manual_seed(_SEED)
        self.device = next(network.parameters()).device

    def record_bytes(self) -> int:
        """Return the memory that one record's gradients, or measures, take.

        Raises:
            PrivateModelError: one null record does not go through, or leaves something behind.
        """
        before = self._state()
        try:
            shares = self._shares(self._null(1))
        except FedfactoryError:
            raise
        except Exception as error:  # a network is code of any kind
            raise PrivateModelError(
                f"privacy=dp_sgd: the network cannot take one record of zeros: {_brief(error)}"
            ) from error
        if changed := self._changed(before):
            raise PrivateModelError(f"privacy=dp_sgd: {changed}")
        return sum(part.nbytes for part in shares)

    def difference(self, rows: int) -> str | None:
        """Return the first thing found that changes a record's share, or None."""
        for fill in (_random, _cancelling):
            self._fill(fill)
            before = self._state()
            try:
                with _without_dropout(self._network):
                    found = next(self._differences(rows), None)
            except FedfactoryError:
                raise
            except Exception as error:  # noqa: BLE001  such as an operation of no deterministic form
                return _brief(error)
            if found := found or self._changed(before):
                return found
        return None

    def _differences(self, rows: int) -> Iterator[str]:
        """Try each record at other positions, and beside others; say what made a difference."""
        records = self._to_device(self._records.fitting(rows))
        home = self._shares(records)
        for shift in range(1, min(rows, _SHIFTS + 1)):
            moved = self._shares((records[0].roll(shift, 0), records[1].roll(shift, 0)))
            if not all(_same(part, one.roll(shift, 0)) for part, one in _pairs(moved, home)):
                yield "it follows the record's position"
        for kind, others in self._records.neighbours(rows):
            if self._follows(others, records, home):
                yield f"it follows {kind} records beside it"
        for kind, others in self._records.unfit_neighbours(rows):
            with suppress(IndexError, ValueError, RuntimeError):  # none such is ever in a pass
                if self._follows(others, records, home):
                    yield f"it follows {kind} records beside it"

    def _follows(self, others: Records, records: Records, home: Shares) -> bool:
        """Whether others in every second row change the share of those in the rows between."""
        rows = len(records[1])
        for start in range(2):  # of one row, its neighbours pass by themselves, between
            at = torch.arange(start, rows, 2, device=self.device)
            x, y = self._to_device(others)
            x[at], y[at] = records[0][at], records[1][at]
            beside = self._shares((x, y))
            if not all(_same(part[at], one[at]) for part, one in _pairs(beside, home)):
                return True
        return False

    def _shares(self, records: Records) -> Shares:
        """Return every row's share in one pass, each time with the same randomness."""
        x, y = (t.clone() for t in records)  # a network may work in place
        repeat_randomness(_SEED)
        return self._probe(x, y)

    def _null(self, rows: int) -> Records:
        return self._to_device(self._records.null(rows))

    def _to_device(self, records: Records) -> Records:
        x, y = (t.to(self.device, copy=True) for t in records)
        return x, y

    def _state(self) -> dict[str, Tensor]:
        kinds = (
            ("parameter", self._network.named_parameters()),
            ("buffer", self._network.named_buffers()),
        )
        return {f"{kind} '{name}'": t.clone() for kind, found in kinds for name, t in found}

    def _changed(self, before: dict[str, Tensor]) -> str | None:
        for name, tensor in self._state().items():
            if name not in before or not _same(tensor[None], before[name][None]):
                return f"{name} keeps something of the records that pass"
        return None

    @torch.no_grad()
    def _fill(self, fill: Callable[[Tensor, bool], Tensor]) -> None:
        """Give the network other weights: what a base model brings, a coordinator chooses.

        What has one dimension or none (biases, scales, gates), and buffers, are drawn for random
        weights, and stay so for cancelling ones.
        """
        first = True
        for parameter in self._network.parameters():
            if not parameter.is_floating_point():
                continue
            values = torch.randn(parameter.shape, generator=self._generator)
            if parameter.dim() > 1:
                parameter.copy_(fill(values, first))
                first = False
            elif fill is _random:
                parameter.copy_(values)
        for buffer in self._network.buffers():
            if buffer.is_floating_point() and fill is _random:  # a variance may not be negative
                buffer.copy_(torch.rand(buffer.shape, generator=self._generator) + 0.5)


def _pairs(found: Shares, expected: Shares) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(found, expected, strict=True)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


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
    """Whether both are equal, what is no number included."""
    if found.shape != one.shape:
        return False
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
