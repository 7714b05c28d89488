"""Sums of per-record gradients by Opacus, each clipped as a whole (flat clipping).

Two ways to the same sum (Abadi et al. 2016, algorithm 1). `hooks` holds every record's gradient;
`ghost` holds a linear layer's as the two factors that it is the product of, in far less memory
(book-keeping: Bu et al. 2023, "Differentially private optimization on large model at small cost").
A record whose gradient is not finite, or too long to be of use, contributes zero in both: one
infinite value would otherwise make the model infinite, and its refusal would tell.

Both add up the very numbers whose norms they clipped. A second backward pass over re-weighted
losses, as in Opacus' own ghost clipping, does not: with weights of a coordinator's choice, terms
cancel in one pass and not in the other, and a record gets past the clip by any factor. Assumed,
beyond float32 rounding (about 1e-6 of the clipping norm): a record's gradient does not depend,
through rounding, on which others are in its batch.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch
from opacus.grad_sample import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedfactory.contracts.privacy import Mechanism
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.task import ModelMismatchError

# As in Opacus: no division by zero, and a clipped norm just below the bound.
_NORM_FLOOR: Final = 1e-6
# A longer gradient's factor would be rounded to few bits, and the clipped norm with it.
_LONGEST: Final = 1e30


class PrivateModelError(ModelMismatchError):
    """The model's gradients cannot be told apart by record."""


def open_gradients(
    network: nn.Module, objective: Objective, mechanism: Mechanism
) -> ClippedGradients:
    """Prepare a network in training mode for clipped sums, in the mechanism's mode.

    Raises:
        PrivateModelError: a layer mixes records, or Opacus has no per-record gradient for it.
    """
    _refuse_mixing_layers(network)
    kind = _RowsModule if mechanism.grad_sample_mode == "hooks" else _FactorsModule
    try:
        return ClippedGradients(kind(network), objective, mechanism.clip_norm_l2)
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


class _Gradients(Protocol):
    """All records' gradients of one parameter."""

    def norms(self) -> Tensor:
        """Return each record's norm, (records,)."""

    def drop(self, lost: Tensor) -> None:
        """Make the gradients of lost records (records,) zero: 0 x infinity would be NaN."""

    def weighted(self, factors: Tensor) -> Tensor:
        """Return their sum, each times its factor (records,)."""


class _Rows:
    """Gradients as they are: rows (records, ...)."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows.flatten(1)

    def norms(self) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(self._rows, dim=1)
        return norms

    def drop(self, lost: Tensor) -> None:
        self._rows[lost] = 0.0

    def weighted(self, factors: Tensor) -> Tensor:
        total: Tensor = factors.to(self._rows.dtype) @ self._rows
        return total


class _Factors:
    """Gradients of a linear layer's weight, outer products of what came back and what came in.

    backprops: (records, out), activations: (records, in).
    """

    def __init__(self, backprops: Tensor, activations: Tensor) -> None:
        # In float32 squares of small numbers vanish, and a norm of 0 is not clipped at all.
        lengths = [
            torch.linalg.vector_norm(part, dim=1, dtype=torch.float64)
            for part in (backprops, activations)
        ]
        self._norms: Tensor = lengths[0] * lengths[1]
        self._lengths = torch.where(lengths[1] > 0, lengths[1], 1.0)
        self._outer, self._inner = backprops, activations

    def norms(self) -> Tensor:
        return self._norms

    def drop(self, lost: Tensor) -> None:
        keep = ~lost[:, None]
        self._outer, self._inner = (
            torch.where(keep, part, 0.0) for part in (self._outer, self._inner)
        )
        self._lengths = torch.where(lost, 1.0, self._lengths)

    def weighted(self, factors: Tensor) -> Tensor:
        # One part of length 1, the other of the clipped gradient's: neither loses bits.
        inner = self._inner / self._lengths[:, None]
        outer = self._outer * (factors * self._lengths)[:, None]
        total: Tensor = outer.to(self._outer.dtype).T @ inner.to(self._inner.dtype)
        return total


class _RowsModule(GradSampleModule):  # type: ignore[misc]  # Opacus has no types
    """Opacus' module, with gradients of every parameter as rows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, loss_reduction="sum")
        self.record_bytes = sum(p.nbytes for p in trainable(network))

    def gradients(self, parameter: nn.Parameter) -> _Gradients:
        """Return a parameter's gradients of the last backward pass."""
        rows = getattr(parameter, "grad_sample", None)
        if not isinstance(rows, Tensor):
            raise _not_by_record(parameter)
        return _Rows(rows)

    def forget(self) -> None:
        """Let go of the last backward pass."""
        self.zero_grad(set_to_none=True)


class _FactorsModule(_RowsModule):
    """Opacus' module, with gradients of linear layers as factors, of all others as rows."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._found: dict[nn.Parameter, _Gradients] = {}
        uses = Counter(p for layer in network.modules() for p in layer.parameters(recurse=False))
        for layer in network.modules():
            for parameter in trainable(layer) if type(layer) is nn.Linear else ():
                if uses[parameter] > 1:
                    raise _not_by_record(parameter)
                self.record_bytes -= parameter.nbytes

    def capture_backprops_hook(
        self, module: nn.Module, forward_input: Any, forward_output: Any, **how: Any
    ) -> None:
        """See Opacus; called once for each use of a layer with parameters."""
        if type(module) is not nn.Linear:
            super().capture_backprops_hook(module, forward_input, forward_output, **how)
            return
        (activations,), backprops = self.rearrange_grad_samples(
            module=module, backprops=forward_output[0].detach(), **how
        )
        if backprops.dim() != 2:
            raise PrivateModelError(
                "privacy=dp_sgd: grad_sample_mode=ghost cannot clip a linear layer over a sequence;"
                " use privacy.grad_sample_mode=hooks"
            )
        self._keep(module.weight, _Factors(backprops, activations))
        if module.bias is not None:
            self._keep(module.bias, _Rows(backprops))

    def gradients(self, parameter: nn.Parameter) -> _Gradients:
        """See _RowsModule."""
        return self._found.get(parameter) or super().gradients(parameter)

    def forget(self) -> None:
        """See _RowsModule."""
        super().forget()
        self._found.clear()

    def _keep(self, parameter: Any, gradients: _Gradients) -> None:
        if parameter in self._found:
            raise _not_by_record(parameter)
        if parameter.requires_grad:
            self._found[parameter] = gradients


class ClippedGradients:
    """Gives clipped sums for the network it was opened on, until closed.

    `record_bytes` is the memory that one record's gradients take.
    """

    def __init__(self, module: _RowsModule, objective: Objective, clip_norm_l2: float) -> None:
        self._module = module
        self._parameters = trainable(module)
        self._objective = objective
        self._clip = clip_norm_l2
        self.record_bytes = module.record_bytes

    def sums(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the batch's clipped gradients added up, one tensor a trainable parameter."""
        losses = self._objective.losses(self._module(x), y)
        with _hooked_first_layer():
            losses.sum().backward()  # type: ignore[no-untyped-call]
        found = [self._module.gradients(parameter) for parameter in self._parameters]
        parts = [gradients.norms().double() for gradients in found]
        for parameter, part in zip(self._parameters, parts, strict=True):
            if len(part) != len(x):
                raise _not_by_record(parameter)
        norms = torch.stack(parts).norm(dim=0)
        lost = ~(norms <= _LONGEST)  # also what is no number
        if lost.any():
            norms[lost] = 0.0
            for gradients in found:
                gradients.drop(lost)
        factors = (self._clip / (norms + _NORM_FLOOR)).clamp(max=1.0)
        sums = [
            gradients.weighted(factors).view_as(parameter)
            for gradients, parameter in zip(found, self._parameters, strict=True)
        ]
        self._module.forget()
        return sums

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


def _not_by_record(parameter: nn.Parameter) -> PrivateModelError:
    return PrivateModelError(
        "privacy=dp_sgd: Opacus gave no gradient for each record, for a parameter of shape"
        f" {tuple(parameter.shape)}; the model uses a layer in a way that it cannot follow"
        " (more than once, not at all, or with records outside of the first axis)"
    )
