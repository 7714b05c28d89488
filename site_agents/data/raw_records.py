"""A source's records as values alone, whatever a task makes of them: what sketches are made of.

Tables are read whole, every column of them; other kinds as a task's schema has them. A number is
its float32 (CSV and Parquet write the same number differently), a text its folded form.
"""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from site_agents.data.pieces import Piece
from site_agents.data.sketch import Hashes, Records

BATCH_ROWS: Final = 1 << 16


def plain(text: str) -> str:
    """Return a text as two sites' clerks would both write it."""
    return unicodedata.normalize("NFKC", text).strip().casefold()


def of_pieces(pieces: Iterable[Piece]) -> Iterator[Records]:
    """Return what a task's pieces hold, without labels."""
    for piece in pieces:
        kept = np.flatnonzero(piece.keep)
        x = piece.x[kept]
        names = [] if piece.unit is None else [piece.unit[int(i)] for i in kept]
        yield Records(
            values=_bits(x.reshape(len(x), -1)),
            are_columns=x.ndim == 2,
            units=[plain(name) for name in names if name is not None],
            unique=[_numbers(column) for column in x.T] if x.ndim == 2 else (),
        )


def _csv(options: Mapping[str, Any]) -> Iterator[Any]:
    from pyarrow import csv as arrow

    encoding, sign = options.get("encoding", "utf8"), options.get("delimiter", ",")
    with Path(options["path"]).open(encoding=encoding, newline="") as file:
        names = next(csv.reader(file, delimiter=sign), [])
    reader = arrow.open_csv(
        options["path"],
        read_options=arrow.ReadOptions(encoding=encoding, use_threads=False),
        parse_options=arrow.ParseOptions(delimiter=sign, newlines_in_values=True),
        convert_options=arrow.ConvertOptions(
            column_types=dict.fromkeys(names, "string"), strings_can_be_null=False
        ),
    )
    with closing(reader):
        yield from reader


def _parquet(options: Mapping[str, Any]) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(options["path"]) as file:
        yield from file.iter_batches(BATCH_ROWS, use_threads=False)


TABLES: Final[Mapping[str, Callable[[Mapping[str, Any]], Iterator[Any]]]] = {
    "csv": _csv,
    "parquet": _parquet,
}


def of_table(options: Mapping[str, Any]) -> Iterator[Records]:
    """Return what a table holds, all columns of it.

    Raises:
        DataError: it cannot be read; no value of a record.
    """
    import pyarrow as pa

    decimal, unit = options.get("decimal", "."), options.get("unit")
    try:
        for batch in TABLES[options["kind"]](options):
            if not batch.num_rows:
                continue
            columns = [_column(column, decimal) for column in batch.columns]
            names = batch.column(unit).to_pylist() if unit in batch.schema.names else []
            yield Records(
                values=np.stack([values for values, _ in columns], axis=1),
                are_columns=True,
                units=[plain(str(name)) for name in names if name is not None],
                unique=[unique for _, unique in columns],
            )
    except (pa.ArrowException, OSError, UnicodeError, csv.Error, KeyError) as error:
        raise DataError(
            f"{options['path']}: cannot be read as a table ({type(error).__name__})"
        ) from None


def _column(column: Any, decimal: str) -> tuple[Hashes, bool]:
    """Return each cell's hash (0: missing), and whether the column numbers the rows."""
    encoded = column.dictionary_encode()
    cells = encoded.dictionary.to_pylist()
    numbers = [_number(value, decimal) for value in cells]
    known = _bits(np.array([*(n if n is not None else 0.0 for n in numbers), 0.0]))
    for i, (value, number) in enumerate(zip(cells, numbers, strict=True)):
        if number is None and (text := plain(str(value))):
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            known[i] = int.from_bytes(digest, "little")
    index = encoded.indices.fill_null(len(cells)).to_numpy(zero_copy_only=False)
    whole = all(number is not None and number.is_integer() for number in numbers)
    return known[index.astype(np.intp)], whole and len(cells) == len(index) > 1


def _number(value: Any, decimal: str) -> float | None:
    """Return a cell's number, None where it is none."""
    try:
        found = float(value.replace(decimal, ".") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found


def _bits(x: NDArray[Any]) -> Hashes:
    """Return each value's float32 bits; -0 is 0, and every NaN the same."""
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(x, np.float32) + np.float32(0)
    found = np.where(np.isnan(found), np.float32(np.nan), found)
    return found.view(np.uint32).astype(np.uint64)


def _numbers(column: NDArray[Any]) -> bool:
    """Whether a column numbers its records: whole numbers, none twice."""
    whole = np.asarray(column, np.float64)
    return bool(np.all(whole == np.floor(whole))) and len(np.unique(whole)) == len(whole) > 1
