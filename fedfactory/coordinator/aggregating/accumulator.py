"""Folds updates into the next model, one at a time, from disk, in canonical order.

Sums in float64, so memory is two float32 models however many sites there are, and the order of
arrival cannot change a bit: whoever calls `add` does so by site, then order. The checks of an
update's form and values come before (aggregation.verify_update).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.bounds import Range
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.model import DTYPES, BlobRef, ModelSpec, TensorSpec
from fedfactory.contracts.strategy import StaleStrategy, StreamingStrategy
from fedfactory.contracts.updates import Update
from fedfactory.wire.arrays import ArrayFile, ArrayWriter

# 64 Ki elements: the buffers of one chunk (float32 and float64) stay in a core's cache.
CHUNK_ELEMENTS: Final = 1 << 16

# A weight times an update's norm (below 1e154), summed over all sites, stays a finite float64.
WEIGHT: Final = Range(0, 1e100)

Vector = NDArray[np.float64]


class AggregationError(FedfactoryError):
    """The strategy could not make a model out of the updates."""


class UpdateFaultError(AggregationError):
    """One site's update cannot be folded; the others' can. `detail` is our own finding."""

    def __init__(self, update: Update, detail: str) -> None:
        self.site, self.order_round, self.detail = update.work.site, update.work.round, detail
        super().__init__(f"the update of site '{self.site}': {detail}")


class Accumulator:
    """The weighted mean of a round's deltas, and then the new model.

    For each round: `begin`, `add` in rising order of (site, order's round), `finish`. Deltas of
    older models move the one that `begin` was given. The sum's memory is kept from round to round:
    asking the system for it anew costs more than the sum itself.
    """

    def __init__(self, strategy: StreamingStrategy) -> None:
        self._strategy = strategy
        self._base = Path()
        self._spec = ModelSpec(tensors=())
        self._sum: Vector = np.empty(0, dtype=np.float64)
        self._total_weight = 0.0
        self._last_key = ("", 0)
        self._folded: list[tuple[Update, Path]] = []
        self._scratch: Vector = np.empty(CHUNK_ELEMENTS, dtype=np.float64)

    def begin(self, base: Path) -> None:
        """Start a round from the model in `base`; what was folded before is forgotten."""
        with ArrayFile(base) as file:
            self._spec = file.spec
        self._base = base
        self._total_weight = 0.0
        self._last_key = ("", 0)
        self._folded.clear()
        elements = sum(tensor.elements for tensor in self._spec.tensors if tensor.is_float)
        if self._sum.size != elements:
            self._sum = np.empty(elements, dtype=np.float64)

    def add(self, update: Update, path: Path, *, staleness: int) -> None:
        """Fold one update (`path`: its deltas, the float tensors of the model).

        A stale one counts less in the sum, but in full in what the sum is divided by: what all
        sites computed on old models moves the new one less (Nguyen et al. 2022, algorithm 1, whose
        mean is over the size of the buffer).

        Raises:
            UpdateFaultError: the strategy gives it no usable weight; nothing was folded.
        """
        key = (update.work.site, update.work.round)
        assert key > self._last_key, "updates are folded in canonical order, once each"
        self._last_key = key
        weight = _weight(update, self._strategy.weight)
        if weight == 0.0:
            return
        counted = weight
        if staleness:
            strategy = self._strategy
            assert isinstance(strategy, StaleStrategy), "stale updates need a stale_weight"
            counted = _weight(update, lambda update: strategy.stale_weight(update, staleness))
        with ArrayFile(path) as file:
            self._fold(file, counted, first=self._total_weight == 0.0)
        self._total_weight += weight
        self._folded.append((update, path))

    def finish(self, out: Path) -> BlobRef:
        """Apply the strategy to base and mean, write the new model, return its reference.

        Tensors are cast to the base's dtypes; integer tensors are the base's.

        Raises:
            UpdateFaultError: the result is not finite, and would not be with this update alone.
            AggregationError: no update had a weight above 0, or the result is not finite.
        """
        if self._total_weight == 0.0:
            raise AggregationError("no update has a weight above 0, so there is no mean")
        writer = ArrayWriter(out, self._spec)
        try:
            with ArrayFile(self._base) as base:
                at = 0
                for tensor in self._spec.tensors:
                    if tensor.is_float:
                        self._write_moved(writer, base, tensor, at)
                        at += tensor.elements
                    else:
                        for piece in base.chunks(tensor.name):
                            writer.write(piece)
        except AggregationError as error:
            writer.abandon()
            raise overflowing(self._base, self._folded) or error from error
        except BaseException:
            writer.abandon()
            raise
        return writer.commit()

    def _fold(self, file: ArrayFile, weight: float, *, first: bool) -> None:
        at = 0
        for tensor in self._spec.tensors:
            if not tensor.is_float:
                continue
            for _, delta in _chunks(file, tensor):
                total = self._sum[at : at + delta.size]
                if first:
                    np.multiply(delta, weight, out=total, dtype=np.float64)
                else:
                    weighed = self._scratch[: delta.size]
                    np.multiply(delta, weight, out=weighed, dtype=np.float64)
                    total += weighed
                at += delta.size

    def _write_moved(self, writer: ArrayWriter, base: ArrayFile, spec: TensorSpec, at: int) -> None:
        for start, chunk in _chunks(base, spec):
            mean = self._sum[at + start : at + start + chunk.size]
            mean /= self._total_weight
            moved = self._strategy.apply(chunk.astype(np.float64), mean)
            writer.write(cast_back(moved, spec, chunk.shape))


def _weight(update: Update, weigh: Callable[[Update], float]) -> float:
    """Return the weight that a strategy gives an update; what it raises is the update's fault."""
    try:
        weight = float(weigh(update))
    except FedfactoryError as error:
        raise UpdateFaultError(update, error.public_message) from error
    except Exception as error:
        told = f"the strategy cannot weigh it ({type(error).__name__})"
        raise UpdateFaultError(update, told) from error
    if not WEIGHT.admits(weight):
        raise UpdateFaultError(update, f"the strategy's weight is {weight}; expected {WEIGHT}")
    return weight


def overflowing(base: Path, folded: Iterable[tuple[Update, Path]]) -> UpdateFaultError | None:
    """Return the fault of the first update whose own model, base plus update, is not finite.

    Asked where an aggregate is not: a mean of finite models is finite, so one site's huge numbers
    are that site's refusal and not the run's end. A file that is gone is nobody's fault.
    """
    for update, path in folded:
        with contextlib.suppress(OSError), ArrayFile(base) as before, ArrayFile(path) as file:
            for spec in file.spec.tensors:
                for (_, start), (_, delta) in zip(
                    _chunks(before, spec), _chunks(file, spec), strict=True
                ):
                    try:
                        cast_back(start.astype(np.float64) + delta, spec, delta.shape)
                    except AggregationError:
                        told = f"its own model's tensor '{spec.name}' is not finite"
                        return UpdateFaultError(update, told)
    return None


def cast_back(values: NDArray[Any], spec: TensorSpec, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a strategy's values in the model's dtype.

    Raises:
        AggregationError: another shape, no real numbers, or not finite ones in that dtype.
    """
    if values.shape != shape or values.dtype.kind not in "fiu":
        raise AggregationError(
            f"the strategy made {values.dtype}{list(values.shape)} of tensor '{spec.name}',"
            f" expected {DTYPES[spec.dtype][0]}{list(shape)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # told by the check below
        cast = values.astype(DTYPES[spec.dtype][0])
    if not np.isfinite(cast).all():
        raise AggregationError(f"the aggregate of tensor '{spec.name}' is not finite")
    return cast


def _chunks(file: ArrayFile, spec: TensorSpec) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (start, chunk) over a tensor; the chunk's buffer is reused."""
    buffer = np.empty(min(CHUNK_ELEMENTS, spec.elements), dtype=DTYPES[spec.dtype][0])
    for start in range(0, spec.elements, CHUNK_ELEMENTS):
        chunk = buffer[: spec.elements - start]
        file.read_into(spec.name, start, chunk)
        yield start, chunk
