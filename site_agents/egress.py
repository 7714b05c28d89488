"""The last look at what is about to leave: declared tensors and allowed metrics, nothing else.

A file has room for more than tensors: metadata, names, gaps, order, bytes at the end. So nothing in
it is left to choice: the header must be, byte for byte, the one that the declared tensors give, and
what follows it must be their values and end there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from io import FileIO
from pathlib import Path
from typing import Final

import numpy as np

from fedfactory.contracts.errors import IntegrityError, ProtocolError
from fedfactory.contracts.model import DTYPES, BlobRef, ModelSpec, TensorSpec
from fedfactory.contracts.norms import NormL2
from fedfactory.wire.arrays import ArrayFile, header_of

# Stays in the processor's second-level cache; a multiple of NormL2's lanes in every dtype.
_CHUNK_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """Why nothing leaves. `finding` stays at the site."""

    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """The update may leave. `norm_l2` is its L2 norm over all tensors."""

    norm_l2: float


def check_update(
    path: Path, declared: ModelSpec, ref: BlobRef, max_norm_l2: float | None
) -> HeldBack | Cleared:
    """Check an update file against the tensors the task declares; read it once, in pieces.

    `declared` is the model: an update holds its floating-point tensors. Header and length must be
    exactly theirs, the file's digest and length `ref`'s, every value finite, and the norm at most
    `max_norm_l2` (contracts/update_norms.py; None: it was held against it before). Memory does not
    grow with the file.
    """
    spec = declared.update_spec()
    header = header_of(spec)
    try:
        length = path.stat().st_size
        if length != len(header) + spec.bytes:
            return HeldBack(finding=_misfit(path, spec, length))
        if length != ref.bytes:
            return HeldBack(finding=f"the file is {length} bytes long, its reference {ref.bytes}")
        with path.open("rb", buffering=0) as file:
            if _read(file, len(header)) != header:
                return HeldBack(finding=_misfit(path, spec, length))
            return _check_values(file, spec, header, ref, max_norm_l2)
    except (IntegrityError, ProtocolError, OSError) as error:
        return HeldBack(finding=str(error))


def check_metrics(
    metrics: Mapping[str, float], allowed: Mapping[str, float]
) -> dict[str, float] | HeldBack:
    """Keep the allowed metrics, each rounded to its granularity (0: as it is).

    `allowed` maps a metric to the step whose nearest multiple leaves. A non-finite value of an
    allowed metric holds everything back.
    """
    kept = {name: metrics[name] for name in allowed if name in metrics}
    for name, value in kept.items():
        if not math.isfinite(value):
            return HeldBack(finding=f"metric '{name}' is not finite")
    return {name: _rounded(value, allowed[name]) for name, value in kept.items()}


def _rounded(value: float, granularity: float) -> float:
    if granularity == 0:
        return value
    # In decimals: 3 x 0.1 is to leave as 0.3, whose digits say nothing more than the multiple.
    step = Decimal(repr(granularity))
    multiple = (Decimal(repr(value)) / step).to_integral_value()
    return float(multiple * step) + 0.0  # -0.0 would tell the sign


def _check_values(
    file: FileIO, spec: ModelSpec, header: bytes, ref: BlobRef, max_norm_l2: float | None
) -> HeldBack | Cleared:
    """Check what follows the header: one pass for digest, finiteness and norm."""
    digest = hashlib.sha256(header)
    total, raw = NormL2(), memoryview(bytearray(_CHUNK_BYTES))
    for tensor in spec.tensors:
        dtype, _ = DTYPES[tensor.dtype]
        left = tensor.bytes
        while left:
            piece = raw[: min(left, _CHUNK_BYTES)]
            _read_into(file, piece)
            digest.update(piece)
            total.add(np.frombuffer(piece, dtype))
            left -= len(piece)
        if not total.is_finite:
            return HeldBack(finding=_not_finite(Path(file.name), tensor))
    if file.read(1):
        return HeldBack(finding="the file grew while it was read")
    if (found_digest := "sha256:" + digest.hexdigest()) != ref.digest:
        return HeldBack(finding=f"the file's digest is {found_digest}, its reference {ref.digest}")
    norm = total.value()
    if not math.isfinite(norm):
        return HeldBack(finding="the update's norm is too large to compute")
    if max_norm_l2 is not None and norm > max_norm_l2:
        return HeldBack(finding=f"the update's norm is {norm:g}, the plan allows {max_norm_l2:g}")
    return Cleared(norm_l2=norm)


def _not_finite(path: Path, tensor: TensorSpec) -> str:
    with ArrayFile(path) as file:
        if all(np.isfinite(piece).all() for piece in file.chunks(tensor.name)):
            return f"tensor '{tensor.name}' holds numbers too large for a norm"
    return f"tensor '{tensor.name}' holds non-finite numbers"


def _misfit(path: Path, spec: ModelSpec, length: int) -> str:
    """Say what a file whose header or length is not the declared one has, as far as it parses."""
    with ArrayFile(path) as file:
        if difference := spec.difference(file.spec):
            return difference
    return (
        "the header holds more than the declared tensors, or in another order"
        f" (file of {length} bytes, expected {len(header_of(spec)) + spec.bytes})"
    )


def _read(file: FileIO, count: int) -> bytes:
    data = bytearray(count)
    _read_into(file, memoryview(data))
    return bytes(data)


def _read_into(file: FileIO, out: memoryview) -> None:
    """Fill `out`: one call may read less."""
    done = 0
    while done < len(out):
        got = file.readinto(out[done:])
        if not got:
            raise IntegrityError("the file was cut short while it was read")
        done += got
