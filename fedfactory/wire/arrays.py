"""Arrays as safetensors files, read and written in pieces: memory never follows the model.

The format is the published one (github.com/huggingface/safetensors): 8 bytes little-endian header
length, a JSON header, then the tensors back to back. We read it ourselves because the library maps
the file (its pages count as our memory) and we stream; headers come from peers, so every field is
checked before it is used. What we write, the library reads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.bounds import MOST
from fedfactory.contracts.errors import IntegrityError, ProtocolError
from fedfactory.contracts.model import DTYPES, BlobRef, ModelSpec, TensorSpec
from fedfactory.contracts.norms import LANES, NormL2

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
VALUES_CHUNK_BYTES: Final = 256 * 1024  # stays in the second-level cache
_NORM_ELEMENTS: Final = 4 * LANES  # 256 KiB of float32
WRITE_BACK_BYTES: Final = 8 * 1024 * 1024

Array = NDArray[Any]


class NotFiniteError(IntegrityError):
    """A tensor holds NaN, infinity or numbers whose squares overflow a float64."""


def spec_of(tensors: Mapping[str, Array]) -> ModelSpec:
    """Return the spec of arrays held in memory.

    Raises:
        ProtocolError: an array's dtype has no safetensors code.
    """
    codes = {dtype: code for code, (dtype, _) in DTYPES.items()}
    found = []
    for name in sorted(tensors):
        array = tensors[name]
        code = codes.get(array.dtype.newbyteorder("<").str)
        if code is None:
            raise ProtocolError(f"tensor '{name}' has dtype {array.dtype}, which cannot travel")
        found.append(TensorSpec(name=name, shape=tuple(array.shape), dtype=code))
    return ModelSpec(tensors=tuple(found))


def _bytes_of(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def header_of(spec: ModelSpec) -> bytes:
    """Return the one header that our files of these tensors begin with, its length included."""
    entries: dict[str, Any] = {}
    offset = 0
    for tensor in spec.tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start on an 8-byte boundary
    return len(text).to_bytes(8, "little") + text


class ArrayWriter:
    """Writes one file in spec order, piece by piece, hashing as it goes.

    The file appears under its name only by `commit`; an abandoned writer leaves nothing behind.
    """

    def __init__(self, path: Path, spec: ModelSpec) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._partial.touch(mode=0o600)  # an update is nobody else's to read
        self._file = self._partial.open("wb")
        self._hash = hashlib.sha256()
        self._written = self._given_to_disk = 0
        self._expected = 0
        self._put(header_of(spec))
        self._expected = self._written + spec.bytes

    def _put(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._written += len(data)
        if self._written - self._given_to_disk >= WRITE_BACK_BYTES:
            self._write_back()

    def _write_back(self) -> None:
        """Let the disk begin meanwhile: who makes the file durable then waits for little."""
        self._file.flush()
        new = self._written - self._given_to_disk
        os.posix_fadvise(self._file.fileno(), self._given_to_disk, new, os.POSIX_FADV_DONTNEED)
        self._given_to_disk = self._written

    def write(self, piece: Array) -> None:
        """Append a piece of the current tensor (any shape and byte order; elements in C order)."""
        if piece.size:  # an empty array has no buffer to view
            little = piece.dtype.newbyteorder("<")
            self._put(_bytes_of(np.ascontiguousarray(piece, dtype=little)))

    def commit(self) -> BlobRef:
        """Put the whole file in place, atomically, and return its reference.

        Raises:
            IntegrityError: fewer or more bytes were written than the spec says.
        """
        if self._written != self._expected:
            self.abandon()
            raise IntegrityError(
                f"{self._path.name}: wrote {self._written} bytes, the spec says {self._expected}"
            )
        self._file.close()
        self._partial.replace(self._path)
        return BlobRef(digest="sha256:" + self._hash.hexdigest(), bytes=self._written)

    def abandon(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def write_arrays(path: Path, tensors: Mapping[str, Array]) -> BlobRef:
    """Write arrays as one safetensors file, atomically; return its reference."""
    writer = ArrayWriter(path, spec_of(tensors))
    try:
        for name in sorted(tensors):
            writer.write(tensors[name])
    except BaseException:
        writer.abandon()
        raise
    return writer.commit()


class ArrayFile:
    """A safetensors file opened for reading; its header is checked on opening.

    Raises:
        IntegrityError: truncated, trailing bytes, overlapping or misplaced tensors, bad header.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        try:
            self.spec, self._offsets = _read_header(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def read(self, name: str) -> Array:
        """Return one tensor as a fresh array in its own shape and dtype."""
        tensor = next(t for t in self.spec.tensors if t.name == name)
        array = np.empty(tensor.shape, dtype=DTYPES[tensor.dtype][0])
        if tensor.bytes:
            self._file.seek(self._offsets[name])
            if self._file.readinto(_bytes_of(array)) != tensor.bytes:
                raise IntegrityError(f"tensor '{name}' is cut short")
        return array

    def chunks(self, name: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Array]:
        """Yield one tensor as flat pieces of at most `chunk_bytes`, in order."""
        tensor = next(t for t in self.spec.tensors if t.name == name)
        dtype, item = DTYPES[tensor.dtype]
        step = max(1, chunk_bytes // item)
        for start in range(0, tensor.elements, step):
            count = min(step, tensor.elements - start)
            piece = np.empty(count, dtype=dtype)
            self._file.seek(self._offsets[name] + start * item)
            if self._file.readinto(_bytes_of(piece)) != count * item:
                raise IntegrityError(f"tensor '{name}' is cut short")
            yield piece

    def read_into(self, name: str, start: int, out: Array) -> None:
        """Fill `out` (flat, the tensor's dtype) with its elements from `start` on.

        For readers of many chunks: a reused buffer costs no allocation.
        """
        if out.size:
            self._file.seek(self._offsets[name] + start * out.itemsize)
            if self._file.readinto(_bytes_of(out)) != out.nbytes:
                raise IntegrityError(f"tensor '{name}' is cut short")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_arrays(path: Path) -> dict[str, Array]:
    """Read a whole file into memory: name -> array, in canonical order."""
    with ArrayFile(path) as file:
        return {tensor.name: file.read(tensor.name) for tensor in file.spec.tensors}


def file_ref(path: Path) -> BlobRef:
    """Return digest and length of a file, reading it once in pieces."""
    digest = hashlib.sha256()
    length = 0
    for piece in file_pieces(path):
        digest.update(piece)
        length += len(piece)
    return BlobRef(digest="sha256:" + digest.hexdigest(), bytes=length)


def file_pieces(path: Path, piece_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield a file's bytes in pieces."""
    with path.open("rb") as file:
        while piece := file.read(piece_bytes):
            yield piece


def first_non_finite(file: ArrayFile) -> str | None:
    """Return the name of the first float tensor that holds NaN or infinity, or None."""
    for tensor in file.spec.tensors:
        if tensor.is_float and not all(np.isfinite(c).all() for c in file.chunks(tensor.name)):
            return tensor.name
    return None


def largest_values(path: Path) -> dict[str, float]:
    """Return the largest |value| of each floating-point tensor, by name; NaN where one is NaN.

    Reads the file once, in pieces. Raises IntegrityError or ProtocolError: not such a file.
    """
    with ArrayFile(path) as file:
        return {
            tensor.name: max_abs(file.chunks(tensor.name, VALUES_CHUNK_BYTES))
            for tensor in file.spec.tensors
            if tensor.is_float
        }


def max_abs(pieces: Iterable[Array]) -> float:
    """Return the largest |value| in pieces of one tensor, 0 if it is empty; NaN if one is NaN."""
    largest = np.float64(0.0)
    for piece in pieces:
        # Of both ends: np.abs would write the piece a second time.
        largest = np.maximum(largest, np.maximum(np.float64(piece.max()), -np.float64(piece.min())))
    return float(largest)


def norm_l2(file: ArrayFile) -> float:
    """Return the L2 norm over all float tensors, read once, in the order of contracts/norms.py.

    Raises:
        NotFiniteError: names the tensor.
    """
    norm = NormL2()
    for tensor in file.spec.tensors:
        if not tensor.is_float:
            continue
        buffer = np.empty(min(tensor.elements, _NORM_ELEMENTS), dtype=DTYPES[tensor.dtype][0])
        for start in range(0, tensor.elements, _NORM_ELEMENTS):
            piece = buffer[: tensor.elements - start]
            file.read_into(tensor.name, start, piece)
            norm.add(piece)
        if not norm.is_finite:
            finite = all(np.isfinite(piece).all() for piece in file.chunks(tensor.name))
            told = "numbers too large for a norm" if finite else "NaN or infinity"
            raise NotFiniteError(f"tensor '{tensor.name}' holds {told}")
    return norm.value()


def _read_header(file: Any, path: Path) -> tuple[ModelSpec, dict[str, int]]:
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, size - 8):
        raise IntegrityError(f"{path.name}: truncated, or not a safetensors file")
    try:
        entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        placed = sorted(
            (_offset(entry["data_offsets"][0]), _offset(entry["data_offsets"][1]), name)
            for name, entry in entries.items()
        )
        tensors = [
            TensorSpec(
                name=name, shape=tuple(map(_offset, entry["shape"])), dtype=str(entry["dtype"])
            )
            for name, entry in sorted(entries.items())
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise IntegrityError(f"{path.name}: bad header", diagnostic=str(error)) from error
    spec = ModelSpec(tensors=tuple(tensors))
    sizes = {tensor.name: tensor.bytes for tensor in tensors}
    _check_layout(placed, sizes, size - 8 - length, path)
    return spec, {name: 8 + length + start for start, _, name in placed}


def _offset(found: Any) -> int:
    """Return a whole number of a header; one that is none, or beyond any file, is a bad header."""
    if type(found) is not int or not 0 <= found <= MOST:
        raise ValueError("expected a whole number from 0 to 2^53")
    return found


def _check_layout(
    placed: Iterable[tuple[int, int, str]], sizes: Mapping[str, int], data: int, path: Path
) -> None:
    at = 0
    for start, end, name in placed:
        if start != at or end - start != sizes[name]:
            raise IntegrityError(f"{path.name}: tensor '{name}' is not where the header says")
        at = end
    if at != data:
        raise IntegrityError(f"{path.name}: {data} bytes of tensors, the header says {at}")
