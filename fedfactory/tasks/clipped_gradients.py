"""Sums of per-record gradients by Opacus, each clipped as a whole (flat clipping).

The sum is that of Abadi et al. 2016, algorithm 1. A linear layer's gradients are held as the two
factors that each is the product of, in far less memory (book-keeping: Bu et al. 2023,
"Differentially private optimization on large model at small cost"), all others as they are. Mode
`hooks` writes a linear layer's out too where factors are not enough (over a sequence, or with a
weight used twice); `ghost` refuses that, so its memory is known. A record whose gradient is not
finite contributes zero: one infinite value would otherwise make the model infinite, and its refusal
would tell.

What is added up are the very numbers whose norms were clipped. A second backward pass over
re-weighted losses, as in Opacus' own ghost clipping, does not: with weights of a coordinator's
choice, terms cancel in one pass and not in the other, and a record gets past the clip by any
factor.

Norms and sums are float64: a float32 sum of a million aligned records moves by three clipping
norms when one of them leaves. That a record's gradient does not depend on the others in its pass
is the caller's to ensure: one number of rows in every pass (fixed_rows.py), which is tried first
(row_invariance.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedfactory.contracts.privacy import GradSampleMode
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.task import ModelMismatchError

# As in Opacus: no division by zero, and a clipped norm just below the bound.
_NORM_FLOOR: Final = 1e-6
# What is worked on in float64 at a time: on a CPU it stays in a core's cache.
_SCRATCH_BYTES: Final = {"cpu": 1 << 19, "cuda": 1 << 28}


class PrivateModelError(ModelMismatchError):
    """The model's gradients cannot be told apart by record."""


def open_gradients(
    network: nn.Module, objective: Objective, mode: GradSampleMode
) -> ClippedGradients:
    """Prepare a network for clipped sums, its records' gradients held as `mode` says.

    Raises:
        PrivateModelError: a layer mixes records, or Opacus has no per-record gradient for it.
    """
    network.train()
    _refuse_mixing_layers(network)
    try:
        return ClippedGradients(_RecordModule(network, mode), objective)
    except NotImplementedError as error:
        raise PrivateModelError(
            "privacy=dp_sgd: a layer of the model has both parameters and buffers, and Opacus gives"
            " no per-record gradients for it; choose a model without it"
        ) from error


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training moves, each once."""
    return [p for p in network.parameters() if p.requires_grad]


def _refuse_mixing_layers(network: nn.Module) -> None:
    # Opacus' own validation passes over layers without parameters and over subclasses; a batch
    # norm mixes records all the same.
    for name, layer in network.named_modules():
        for kind, validate in ModuleValidator.VALIDATORS.items():
            if isinstance(layer, kind) and validate(layer):
                raise PrivateModelError(
                    f"privacy=dp_sgd: layer '{name}' is a {kind.__name__}, which cannot be trained"
                    " record by record; choose a model without it (with group norm for batch norm,"
                    " Opacus' own layers for LSTM, GRU and attention)"
                )
        if getattr(layer, "max_norm", None) is not None:
            raise PrivateModelError(
                f"privacy=dp_sgd: layer '{name}' shortens, without noise, the vectors that records"
                " look up (max_norm); choose a model without it"
            )


class Gradients(Protocol):
    """All records' gradients of one parameter."""

    @property
    def parts(self) -> Sequence[Tensor]:
        """The tensors (records, ...) that norms and sums are computed from, and nothing else is."""

    def norms(self) -> Tensor:
        """Return each record's norm, (records,) float64."""

    def as_rows(self) -> _Rows:
        """Return them written out, a row for each record."""

    def drop(self, lost: Tensor) -> None:
        """Make the gradients of lost records (records,) zero: 0 x infinity would be NaN."""

    def weighted(self, factors: Tensor) -> Tensor:
        """Return the float64 sum of the first records, each times its factor (at most records,)."""


class _Rows:
    """Gradients as they are: rows (records, elements). `scratch` is float64 room to work in."""

    def __init__(self, rows: Tensor, scratch: Tensor) -> None:
        self._rows = rows
        self._scratch = scratch

    @property
    def parts(self) -> Sequence[Tensor]:
        return (self._rows,)

    def as_rows(self) -> _Rows:
        return self

    def norms(self) -> Tensor:
        squares = torch.zeros(len(self._rows), dtype=torch.float64, device=self._rows.device)
        for rows, _, values in self._chunks(len(self._rows)):
            squares[rows] += values.square_().sum(1)
        return squares.sqrt_()

    def drop(self, lost: Tensor) -> None:
        self._rows = self._rows.masked_fill(lost[:, None], 0.0)

    def weighted(self, factors: Tensor) -> Tensor:
        total = torch.zeros(self._rows.shape[1], dtype=torch.float64, device=self._rows.device)
        for rows, columns, values in self._chunks(len(factors)):
            total[columns].addmv_(values.T, factors[rows])
        return total

    def plus(self, other: _Rows) -> _Rows:
        """Return the gradients of two uses of one parameter, added up."""
        if self._rows.shape != other._rows.shape:
            raise PrivateModelError("privacy=dp_sgd: two uses of one weight have different records")
        return _Rows(self._rows + other._rows, self._scratch)

    def _chunks(self, records: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Give the first records' values in float64, as much at a time as the room takes."""
        elements = self._rows.shape[1]
        width = min(elements, len(self._scratch))
        height = max(1, len(self._scratch) // max(1, width))
        for left in range(0, elements, width):
            for top in range(0, records, height):
                rows = slice(top, min(top + height, records))
                values = self._rows[rows, left : left + width]
                room = self._scratch[: values.numel()].view(values.shape)
                yield rows, slice(left, left + width), room.copy_(values)


class _Factors:
    """Gradients of a linear layer's weight, outer products of what came back and what came in.

    backprops: (records, out), activations: (records, in).
    """

    def __init__(self, backprops: Tensor, activations: Tensor, scratch: Tensor) -> None:
        self._outer, self._inner = backprops, activations
        self._scratch = scratch

    @property
    def parts(self) -> Sequence[Tensor]:
        return (self._outer, self._inner)

    def as_rows(self) -> _Rows:
        rows = self._outer[:, :, None] * self._inner[:, None, :]
        return _Rows(rows.flatten(1), self._scratch)

    def norms(self) -> Tensor:
        return _lengths(self._outer) * _lengths(self._inner)

    def drop(self, lost: Tensor) -> None:
        # Not in place: the activations of a first layer are the records themselves.
        self._outer, self._inner = (
            part.masked_fill(lost[:, None], 0.0) for part in (self._outer, self._inner)
        )

    def weighted(self, factors: Tensor) -> Tensor:
        outer, inner = (part[: len(factors)].double() for part in (self._outer, self._inner))
        total: Tensor = (outer * factors[:, None]).T @ inner
        return total.flatten()


def _lengths(rows: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return lengths


class _RecordModule(GradSampleModule):  # type: ignore[misc]  # Opacus has no types
    """Opacus' module, with each record's gradients kept here.

    As factors for a linear layer that is used once, on one vector a record; as rows for all else.
    Opacus itself copies every gradient into a tensor of zeros, a third of a step's time.
    """

    def __init__(self, network: nn.Module, mode: GradSampleMode) -> None:
        super().__init__(network, loss_reduction="sum")
        self._found: dict[nn.Parameter, Gradients] = {}
        self._needs_factors = mode == "ghost"
        device = next(network.parameters()).device
        room = _SCRATCH_BYTES[device.type] // 8
        self._scratch = torch.empty(room, dtype=torch.float64, device=device)

    def capture_backprops_hook(
        self, module: nn.Module, forward_input: Any, forward_output: Any, **how: Any
    ) -> None:
        """See Opacus; called once for each use of a layer with parameters."""
        del forward_input
        activations, backprops = self.rearrange_grad_samples(
            module=module, backprops=forward_output[0].detach(), **how
        )
        own = dict(module.named_parameters(recurse=False))
        is_linear = type(module) is nn.Linear and "weight" in own  # not made of other parameters
        if is_linear and backprops.dim() == 2 and own["weight"] not in self._found:
            self._keep(own["weight"], _Factors(backprops, activations[0], self._scratch))
            if "bias" in own:
                self._keep(own["bias"], _Rows(backprops, self._scratch))
        elif is_linear and self._needs_factors:
            raise _no_factors(module)
        else:
            kind = self._get_module_type(module)
            sampler = self.GRAD_SAMPLERS.get(kind, ft_compute_per_sample_gradient)
            for parameter, rows in sampler(module, activations, backprops).items():
                self._keep(parameter, _Rows(rows.flatten(1), self._scratch))
        if not module.activations:
            del module.max_batch_len

    def gradients(self, parameter: nn.Parameter) -> Gradients:
        """Return a parameter's gradients of the last backward pass."""
        if parameter not in self._found:
            raise _not_by_record(parameter)
        return self._found[parameter]

    def forget(self) -> None:
        """Let go of the last backward pass."""
        self.zero_grad(set_to_none=True)
        self._found.clear()

    def _keep(self, parameter: nn.Parameter, gradients: Gradients) -> None:
        before = self._found.get(parameter)
        if before is not None:  # of another use of the parameter
            gradients = before.as_rows().plus(gradients.as_rows())
        if parameter.requires_grad:
            self._found[parameter] = gradients


class ClippedGradients:
    """Gives clipped sums for the network it was opened on, until closed."""

    def __init__(self, module: _RecordModule, objective: Objective) -> None:
        self._module = module
        self._parameters = trainable(module)
        self._objective = objective

    def sums(self, x: Tensor, y: Tensor, count: int, clip_norm_l2: float) -> list[Tensor]:
        """Return the clipped gradients of the first `count` records added up.

        x: (rows, *features), y: (rows,). The other rows are null records: they pass through the
        network, and their gradients are dropped. One float64 tensor a trainable parameter.

        Raises:
            PrivateModelError: Opacus did not give one gradient a record.
        """
        with self.by_record(x, y) as found:
            parts = torch.stack([gradients.norms() for gradients in found])
            norms = torch.linalg.vector_norm(parts, dim=0)
            lost = ~norms.isfinite()
            if lost.any():
                norms[lost] = 0.0
                for gradients in found:
                    gradients.drop(lost)
            factors = (clip_norm_l2 / (norms[:count] + _NORM_FLOOR)).clamp(max=1.0)
            return [
                gradients.weighted(factors).view_as(parameter)
                for gradients, parameter in zip(found, self._parameters, strict=True)
            ]

    @contextmanager
    def by_record(self, x: Tensor, y: Tensor) -> Iterator[list[Gradients]]:
        """Lend all rows' gradients, one entry a trainable parameter; see `sums`."""
        try:
            losses = self._objective.losses(self._module(x), y)
            with _hooked_first_layer():
                losses.sum().backward()  # type: ignore[no-untyped-call]
            found = [self._module.gradients(parameter) for parameter in self._parameters]
            for parameter, gradients in zip(self._parameters, found, strict=True):
                if any(len(part) != len(x) for part in gradients.parts):
                    raise _not_by_record(parameter)
            yield found
        finally:
            self._module.forget()

    def close(self) -> None:
        """Take Opacus' hooks, and what they kept of records, off the network."""
        self._module.forget()
        network = self._module.to_standard_module()
        for layer in network.modules():
            for name in ("activations", "max_batch_len"):
                layer.__dict__.pop(name, None)
        network.zero_grad(set_to_none=True)


@contextmanager
def _hooked_first_layer() -> Iterator[None]:
    """Keep torch from warning of what is meant: the first layer's input needs no gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _no_factors(layer: nn.Module) -> PrivateModelError:
    return PrivateModelError(
        f"privacy=dp_sgd: grad_sample_mode=ghost cannot clip {layer}, which is used over a sequence"
        " or more than once; use privacy.grad_sample_mode=hooks"
    )


def _not_by_record(parameter: nn.Parameter) -> PrivateModelError:
    return PrivateModelError(
        "privacy=dp_sgd: Opacus gave no gradient for each record, for a parameter of shape"
        f" {tuple(parameter.shape)}; the model uses a layer in a way that it cannot follow"
        " (more than once, not at all, or with records outside of the first axis)"
    )
