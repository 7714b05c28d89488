"""`npz`: a file with arrays x and y, and unit, as numpy.savez writes them; never unpickled.

Arrays are read in pieces straight from the archive, so neither the file nor an array need fit into
memory.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.columns import Classes
from fedfactory.tasks.examples import DataSchema
from fedfactory.tasks.faults import Fault
from site_agents.data.file_source import FileSource
from site_agents.data.files import open_file
from site_agents.data.labels import LabelMap, is_missing, name_of
from site_agents.data.options import absolute_path, read_options
from site_agents.data.pieces import Piece, whole_piece
from site_agents.data.profile import ColumnProfile, Profile

PIECE_BYTES: Final = 1 << 24
MAX_HEADER: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class NpzOptions:
    """`x`, `y` and `unit` name arrays; `labels` maps the file's labels to the task's classes."""

    path: str
    x: str = "x"
    y: str = "y"
    unit: str | None = None
    labels: Mapping[str, str | int] = field(default_factory=dict)


class Npz(FileSource):
    """One NPZ file. x is in the task's own form: categories as numbers, windows as they are."""

    def read_options(self, options: Mapping[str, Any]) -> None:
        """See Source."""
        self._options = read_options(NpzOptions, self.name, options)
        self.path = absolute_path(self.name, self._options.path)

    @property
    def by_unit(self) -> bool:
        """See Source."""
        return self._options.unit is not None

    def check_form(self, schema: DataSchema) -> None:
        """See Source: the arrays' headers, and none of their entries."""
        with _arrays(self.path) as arrays:
            _Chosen(self._options, schema, arrays, self.path)

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        return npz_pieces(self._options, schema)

    def profile(self) -> Profile:
        """See Source."""
        with _arrays(self.path) as arrays:
            columns = tuple(
                ColumnProfile(name=a.name, form=f"{a.dtype} {a.shape}", missing=None)
                for a in arrays.values()
            )
            x = arrays.get(self._options.x)
            return Profile(records=x.shape[0] if x and x.shape else 0, columns=columns)


def npz_pieces(options: NpzOptions, schema: DataSchema) -> Iterator[Piece]:
    """Read the arrays of a file, some records at a time.

    Raises:
        DataError: not an NPZ file, an array that is missing, or of another form.
    """
    path = Path(options.path)
    with _arrays(path) as arrays:
        chosen = _Chosen(options, schema, arrays, path)
        yield from chosen.pieces()


class _Chosen:
    """The arrays of a file that serve a schema; their entries are read by `pieces`.

    Raises:
        DataError: one that is missing, or of another type or shape.
    """

    def __init__(
        self,
        options: NpzOptions,
        schema: DataSchema,
        arrays: Mapping[str, _Array],
        path: Path,
    ) -> None:
        self._x, self._y = _named(arrays, options.x, path), _named(arrays, options.y, path)
        self._unit = _named(arrays, options.unit, path) if options.unit else None
        self._mapped = bool(options.labels)
        self._labels = None
        if isinstance(schema.label, Classes):
            self._labels = LabelMap(schema.label, options.labels, str(path))
        for other in filter(None, (self._y, self._unit)):
            if len(other.shape) != 1:
                raise DataError(
                    f"{path}: array '{other.name}' has shape {other.shape}, expected"
                    f" {self._x.shape[:1]}, an entry for each record of '{self._x.name}'"
                )
        if self._y.dtype.kind not in ("fiubU" if self._labels else "fiub"):
            expected = "numbers or names" if self._labels else "numbers"
            raise DataError(f"{path}: y has dtype {self._y.dtype}, expected {expected}")
        schema.check_form(self._x, _Indices(self._x.shape[:1]), str(path))

    def pieces(self) -> Iterator[Piece]:
        """Read all records; where arrays are of different lengths, those that are in each."""
        lengths = [a.shape[0] for a in (self._x, self._y, self._unit) if a is not None]
        most, count = max(lengths), min(lengths)
        if most != count:
            yield self._without_entry(most, count)
        step = max(1, PIECE_BYTES // max(1, self._x.row_bytes))
        for start in range(0, count, step):
            rows = min(step, count - start)
            unit = None if self._unit is None else _names(self._unit.read(rows))
            x, y = self._x.read(rows), self._y.read(rows)
            if self._labels is None or (y.dtype.kind in "iubf" and not self._mapped):
                yield whole_piece(x, y.astype(np.int64) if y.dtype.kind == "b" else y, unit)
                continue
            found = self._labels.indices([name or "" for name in _names(y)])
            piece = whole_piece(x, found, unit)
            yield piece.without(found < 0, self._labels.unknown, f"array '{self._y.name}'")

    def _without_entry(self, most: int, count: int) -> Piece:
        """Return no records, and that some are not in every array."""
        shapes = [
            f"array '{other.name}' has shape {other.shape}, expected {self._x.shape[:1]}"
            for other in (self._y, self._unit)
            if other is not None and other.shape != self._x.shape[:1]
        ]
        fault = Fault(
            before=f"{'; '.join(shapes)}, an entry for each record of '{self._x.name}': ",
            after=" records have none",
            count=most - count,
            total=most,
        )
        none = whole_piece(
            np.empty((0, *self._x.shape[1:]), self._x.dtype),
            np.empty(0, np.int64),
            None if self._unit is None else [],
        )
        return replace(none, faults=(fault,))


@dataclass(frozen=True, slots=True)
class _Indices:
    """The form of labels once they are indices of classes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.int64))


def _names(values: NDArray[Any]) -> list[str | None]:
    """Return entries as names, None for NaN."""
    return [None if is_missing(value) else name_of(value) for value in values.tolist()]


class _Array:
    """One array of an open archive, read from its begin to its end."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.name = name
        self._file = file
        major, _ = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if major == 1
            else np.lib.format.read_array_header_2_0
        )
        self.shape, fortran, self.dtype = read(file, max_header_size=MAX_HEADER)
        if self.dtype.hasobject:
            raise DataError(f"array '{name}' holds Python objects, expected plain numbers or texts")
        if fortran and len(self.shape) > 1:
            raise DataError(
                f"array '{name}' is stored column by column; save numpy.ascontiguousarray of it"
            )
        self.row_bytes = int(self.dtype.itemsize * np.prod(self.shape[1:], dtype=np.int64))

    def read(self, rows: int) -> NDArray[Any]:
        """Return the next rows."""
        wanted = rows * self.row_bytes
        data = self._file.read(wanted)
        if len(data) != wanted:
            raise EOFError
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


@contextmanager
def _arrays(path: Path) -> Iterator[Mapping[str, _Array]]:
    """Open all arrays of a file; whatever is wrong with it, while it is read, is a DataError."""
    opened: list[IO[bytes]] = []
    try:
        with open_file(path) as raw, zipfile.ZipFile(raw) as archive:
            found = {}
            for member in archive.namelist():
                file = archive.open(member)
                opened.append(file)
                name = member.removesuffix(".npy")
                found[name] = _Array(name, file)
            yield found
    except DataError as error:
        text = error.public_message
        raise DataError(text if str(path) in text else f"{path}: {text}") from error
    except (OSError, ValueError, TypeError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _broken(path) from error
    except (zlib.error, zipfile.BadZipFile, SyntaxError) as error:
        raise _broken(path) from error
    finally:
        for file in opened:
            file.close()


def _broken(path: Path) -> DataError:
    # NumPy's own sentence would advise unpickling the file.
    return DataError(
        f"{path}: not a whole NPZ file of plain arrays;"
        " expected what numpy.savez(FILE, x=..., y=...) writes"
    )


def _named(arrays: Mapping[str, _Array], name: str, path: Path) -> _Array:
    if name not in arrays:
        raise DataError(f"{path}: holds no array '{name}'; found {_listed(list(arrays))}")
    return arrays[name]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)) or "none"
