"""The last look at what is about to leave: declared tensors and allowed metrics, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfactory.contracts.errors import IntegrityError, ProtocolError
from fedfactory.contracts.model import BlobRef, ModelSpec
from fedfactory.wire.arrays import ArrayFile, first_non_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """Why nothing leaves. `finding` stays at the site."""

    finding: str


def check_update(path: Path, declared: ModelSpec, ref: BlobRef) -> HeldBack | None:
    """Check an update file against the tensors the task declares; read it once, in pieces.

    Exact names, shapes, dtypes and total bytes; every value finite. `ref` is the worker's own, made
    as it wrote: the gateway takes nothing that has another digest, so nothing else can leave.
    """
    try:
        if (length := path.stat().st_size) != ref.bytes:
            return HeldBack(finding=f"the file is {length} bytes long, not {ref.bytes}")
        with ArrayFile(path) as file:
            if difference := declared.update_spec().difference(file.spec):
                return HeldBack(finding=difference)
            if name := first_non_finite(file):
                return HeldBack(finding=f"tensor '{name}' holds non-finite numbers")
    except (IntegrityError, ProtocolError, OSError) as error:
        return HeldBack(finding=str(error))
    return None


def check_metrics(
    metrics: Mapping[str, float], allowed: tuple[str, ...]
) -> dict[str, float] | HeldBack:
    """Keep the allowed metrics; a non-finite one holds everything back."""
    kept = {name: metrics[name] for name in allowed if name in metrics}
    for name, value in kept.items():
        if not math.isfinite(value):
            return HeldBack(finding=f"metric '{name}' is not finite")
    return kept
