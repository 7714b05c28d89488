"""Sums of per-record gradients by Opacus, each clipped as a whole (flat clipping).

Two ways to the same sum (Abadi et al. 2016, algorithm 1). `hooks` holds every record's gradient;
`ghost` works out their norms layer by layer and goes back a second time over re-weighted losses
(Lee and Kifer 2021; Opacus' fast gradient clipping), in far less memory. A record whose gradient is
not finite contributes zero in both: one infinite value would otherwise make the model infinite,
and its refusal would tell.

`hooks` clips the very numbers that it adds up. `ghost` clips by norms worked out apart, so the two
must agree whatever the coordinator put into the model: Opacus' norms of a linear layer, in float32,
become 0 where squares are too small or terms over a sequence cancel, and 0 is not clipped at all.
Ours are float64 and refuse sequences. Assumed, beyond that: float32 rounding, about 1e-6 of the
clipping norm.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Final, Protocol

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedfactory.contracts.privacy import Mechanism
from fedfactory.tasks.objectives import Objective
from fedfactory.tasks.task import ModelMismatchError

# As in Opacus: no division by zero, and a clipped norm just below the bound.
_NORM_FLOOR: Final = 1e-6


class PrivateModelError(ModelMismatchError):
    """The model's gradients cannot be told apart by record."""


class ClippedGradients(Protocol):
    """Gives clipped sums for the network it was opened on, until closed."""

    record_bytes: int
    """Memory that one record's gradients take."""

    def sums(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return the batch's clipped gradients added up, one tensor a trainable parameter."""

    def close(self) -> None:
        """Take Opacus' hooks, and what they kept of records, off the network."""


def open_gradients(
    network: nn.Module, objective: Objective, mechanism: Mechanism
) -> ClippedGradients:
    """Prepare a network in training mode for clipped sums, in the mechanism's mode.

    Raises:
        PrivateModelError: a layer mixes records, or Opacus has no per-record gradient for it.
    """
    _refuse_mixing_layers(network)
    kind = _Hooks if mechanism.grad_sample_mode == "hooks" else _Ghost
    try:
        return kind(network, objective, mechanism.clip_norm_l2)
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


class _Hooks:
    def __init__(self, network: nn.Module, objective: Objective, clip_norm_l2: float) -> None:
        self._parameters = trainable(network)
        self._objective = objective
        self._clip = clip_norm_l2
        self.record_bytes = sum(p.nbytes for p in self._parameters)
        self._module = GradSampleModule(network, loss_reduction="sum")

    def sums(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See ClippedGradients."""
        losses = self._objective.losses(self._module(x), y)
        with _hooked_first_layer():
            losses.sum().backward()  # type: ignore[no-untyped-call]
        rows = [_per_record(p, "grad_sample", len(x)).flatten(1) for p in self._parameters]
        self._module.zero_grad(set_to_none=True)
        norms = torch.stack([torch.linalg.vector_norm(r, dim=1) for r in rows]).norm(dim=0)
        factors = _factors(norms, self._clip)
        lost = ~norms.isfinite()
        if lost.any():
            factors[lost] = 0.0
            for row in rows:
                row[lost] = 0.0  # 0 x infinity would be NaN
        return [(factors @ row).view_as(p) for row, p in zip(rows, self._parameters, strict=True)]

    def close(self) -> None:
        """See ClippedGradients."""
        _unhook(self._module)


def _linear_norms(
    layer: nn.Linear, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return each record's gradient norms (batch,): of an outer product, the product of norms."""
    if backprops.dim() != 2:
        raise PrivateModelError(
            "privacy=dp_sgd: grad_sample_mode=ghost cannot clip a linear layer over a sequence;"
            " use privacy.grad_sample_mode=hooks"
        )
    outer = torch.linalg.vector_norm(backprops, dim=1, dtype=torch.float64)
    inner = torch.linalg.vector_norm(activations[0], dim=1, dtype=torch.float64)
    norms: dict[Tensor, Tensor] = {layer.weight: outer * inner}
    if layer.bias is not None:
        norms[layer.bias] = outer
    # What float32 cannot hold is infinite from here on, so that its record contributes zero.
    return {parameter: norm.to(backprops.dtype) for parameter, norm in norms.items()}


class _GhostModule(GradSampleModuleFastGradientClipping):  # type: ignore[misc]  # no types
    """Opacus' module with our norms for linear layers, and per-record gradients for all others."""

    NORM_SAMPLERS: ClassVar = {nn.Linear: _linear_norms}


class _Ghost:
    def __init__(self, network: nn.Module, objective: Objective, clip_norm_l2: float) -> None:
        self._parameters = trainable(network)
        self._objective = objective
        self._clip = clip_norm_l2
        self._module = _GhostModule(network, loss_reduction="sum")
        # A layer without a ghost norm holds its records' gradients, one layer at a time.
        self.record_bytes = max(
            (
                sum(p.nbytes for p in layer.parameters(recurse=False))
                for layer in network.modules()
                if type(layer) not in _GhostModule.NORM_SAMPLERS
            ),
            default=0,
        )

    def sums(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """See ClippedGradients."""
        if not len(x):
            return [torch.zeros_like(p) for p in self._parameters]
        losses = self._objective.losses(self._module(x), y)
        with _hooked_first_layer():
            losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        norms = torch.stack([_per_record(p, "_norm_sample", len(x)) for p in self._parameters])
        norms = norms.norm(dim=0)
        for parameter in self._parameters:
            parameter.grad = None
            del parameter._norm_sample  # type: ignore[attr-defined]  # noqa: SLF001  Opacus' own; left, it would serve other records
        kept = norms.isfinite()
        if not kept.all():
            return self.sums(x[kept], y[kept])
        weighted = (_factors(norms, self._clip) * losses).sum()
        self._module.disable_hooks()
        with _hooked_first_layer():
            gradients = torch.autograd.grad(weighted, self._parameters)
        self._module.enable_hooks()
        return list(gradients)

    def close(self) -> None:
        """See ClippedGradients."""
        _unhook(self._module)


@contextmanager
def _hooked_first_layer() -> Iterator[None]:
    """Keep torch from warning of what is meant: the first layer's input needs no gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        yield


def _factors(norms: Tensor, clip_norm_l2: float) -> Tensor:
    return (clip_norm_l2 / (norms + _NORM_FLOOR)).clamp(max=1.0)


def _per_record(parameter: nn.Parameter, attribute: str, records: int) -> Tensor:
    found = getattr(parameter, attribute, None)
    if not isinstance(found, Tensor) or len(found) != records:
        raise PrivateModelError(
            "privacy=dp_sgd: Opacus gave no gradient for each record, for a parameter of shape"
            f" {tuple(parameter.shape)}; the model uses a layer in a way that it cannot follow"
            " (more than once, not at all, or with records outside of the first axis)"
        )
    return found


def _unhook(module: GradSampleModule) -> None:
    network = module.to_standard_module()
    for layer in network.modules():
        for name in ("activations", "max_batch_len"):
            layer.__dict__.pop(name, None)
    network.zero_grad(set_to_none=True)
