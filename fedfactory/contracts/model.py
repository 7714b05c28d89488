"""The shape of a model on the wire: names, shapes and dtypes of its tensors, and blobs of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Final

from fedfactory.contracts.bounds import MAX_AXES, MOST, Count, Entries, check_fields
from fedfactory.contracts.errors import ProtocolError

# safetensors dtype code -> (numpy dtype, bytes per element). Only what numpy can compute with.
DTYPES: Final[dict[str, tuple[str, int]]] = {
    "F64": ("<f8", 8),
    "F32": ("<f4", 4),
    "F16": ("<f2", 2),
    "I64": ("<i8", 8),
    "I32": ("<i4", 4),
    "I16": ("<i2", 2),
    "I8": ("|i1", 1),
    "U8": ("|u1", 1),
    "BOOL": ("|b1", 1),
}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _is_extent(extent: object) -> bool:
    return type(extent) is int and 0 <= extent <= MOST


def check_digest(digest: str) -> str:
    """Return `digest` if it has the form 'sha256:<64 hex>'; raise ProtocolError otherwise."""
    if not _DIGEST.fullmatch(digest):
        raise ProtocolError("a digest must have the form sha256:<64 hex digits>")
    return digest


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A file by content: its digest and its length in bytes."""

    digest: str
    bytes: Count

    def __post_init__(self) -> None:
        check_digest(self.digest)
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor: its name, shape (elements per axis) and safetensors dtype code."""

    name: str
    shape: Annotated[tuple[Count, ...], Entries(MAX_AXES)]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ProtocolError(f"tensor {self.name}: dtype {self.dtype} is not one of {[*DTYPES]}")
        if len(self.shape) > MAX_AXES or not all(map(_is_extent, self.shape)):
            raise ProtocolError(f"tensor {self.name}: expected up to {MAX_AXES} extents, 0 to 2^53")
        if math.prod(self.shape) > MOST:
            raise ProtocolError(f"tensor {self.name}: more than 2^53 elements")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPES[self.dtype][1]

    @property
    def is_float(self) -> bool:
        """Whether training moves it: integer buffers stay at the base model's value."""
        return self.dtype.startswith("F")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The tensors of a model or update, in canonical order (by name)."""

    tensors: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in self.tensors]
        if names != sorted(set(names)):
            raise ProtocolError("tensors must have distinct names, in sorted order")

    @property
    def bytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.bytes for tensor in self.tensors)

    def update_spec(self) -> ModelSpec:
        """What an update of this model may hold: its floating-point tensors, nothing else."""
        return ModelSpec(tensors=tuple(t for t in self.tensors if t.is_float))

    def difference(self, other: ModelSpec) -> str | None:
        """Return the first difference from `other` as a sentence, or None if they are equal."""
        mine = {tensor.name: tensor for tensor in self.tensors}
        theirs = {tensor.name: tensor for tensor in other.tensors}
        if missing := sorted(mine.keys() - theirs.keys()):
            return f"tensor '{missing[0]}' is missing"
        if extra := sorted(theirs.keys() - mine.keys()):
            return f"tensor '{extra[0]}' is not part of the model"
        for name, tensor in mine.items():
            found = theirs[name]
            if found.shape != tensor.shape:
                return f"tensor '{name}' has shape {found.shape}, expected {tensor.shape}"
            if found.dtype != tensor.dtype:
                return f"tensor '{name}' has dtype {found.dtype}, expected {tensor.dtype}"
        return None
