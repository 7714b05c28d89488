"""`npz`: a file with arrays x and y, and unit, as numpy.savez writes them; never unpickled.

Arrays are read in pieces straight from the archive, so neither the file nor an array need fit into
memory.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.columns import Classes
from fedfactory.tasks.examples import DataSchema
from site_agents.data.file_source import FileSource
from site_agents.data.files import open_file
from site_agents.data.labels import LabelMap
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
        DataError: not an NPZ file, an array that is missing, or of another length.
    """
    path = Path(options.path)
    with _arrays(path) as arrays:
        x, y = _named(arrays, options.x, path), _named(arrays, options.y, path)
        unit = _named(arrays, options.unit, path) if options.unit else None
        count = x.shape[0] if x.shape else 0
        for other in filter(None, (y, unit)):
            if other.shape != (count,):
                raise DataError(
                    f"{path}: array '{other.name}' has shape {other.shape}, expected ({count},),"
                    f" an entry for each record of '{x.name}'"
                )
        step = max(1, PIECE_BYTES // max(1, x.row_bytes))
        for start in range(0, count, step):
            rows = min(step, count - start)
            names = None if unit is None else [str(value) for value in unit.read(rows).tolist()]
            labels = _labels(y.read(rows), options.labels, schema, f"{path}: array '{y.name}'")
            yield whole_piece(x.read(rows), labels, names)


def _labels(
    found: NDArray[Any], mapped: Mapping[str, str | int], schema: DataSchema, where: str
) -> NDArray[Any]:
    """Whole numbers are indices of classes, unless the site maps them; texts are names."""
    if not isinstance(schema.label, Classes) or (found.dtype.kind in "iub" and not mapped):
        return found.astype(np.int64) if found.dtype.kind == "b" else found
    return LabelMap(schema.label, mapped, where).indices([str(v) for v in found.tolist()], where)


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
