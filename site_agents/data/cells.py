"""Cells of one column of a table, as numbers, names or moments. Works on pyarrow arrays.

Every function returns as many entries as there are cells, and which of them are missing: nulls, and
numbers that are NaN. Errors name the column and count what is wrong; they show no cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError

Floats = NDArray[np.float64]
Missing = NDArray[np.bool_]


def numbers(cells: Any, where: str, decimal: str | None) -> tuple[Floats, Missing]:
    """Return cells as float64; texts are read as numbers with the sign `decimal` (None: refused).

    Raises:
        DataError: cells that are no numbers, or not finite.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = cells.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if decimal is None:
            raise DataError(f"{where} holds texts, expected numbers")
        cells = _parsed(cells, where, decimal)
    elif not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(f"{where} has type {kind}, expected numbers")
    if pa.types.is_boolean(kind):
        cells = pc.cast(cells, pa.int8())
    found = pc.cast(cells, pa.float64(), safe=False)
    values: Floats = np.array(pc.fill_null(found, float("nan")), dtype=np.float64)
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise DataError(f"{where}: {infinite} of {len(values)} values are not finite")
    return values, np.isnan(values)


def named(cells: Any, where: str) -> tuple[NDArray[np.int64], list[str], Missing]:
    """Return codes into a list of names, -1 where missing. Whole numbers are their digits.

    Raises:
        DataError: a type that has no names.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    encoded = pc.dictionary_encode(_as_text(cells, where))
    codes = np.array(pc.fill_null(pc.cast(encoded.indices, pa.int64()), -1), dtype=np.int64)
    return codes, encoded.dictionary.to_pylist(), codes < 0


def texts(cells: Any, where: str) -> tuple[list[str], Missing]:
    """Return cells as texts; a missing one is the empty text.

    Raises:
        DataError: a type that has no names.
    """
    codes, names, missing = named(cells, where)
    table = np.array([*names, ""], dtype=object)
    return table[codes].tolist(), missing


def moments(
    cells: Any, where: str, decimal: str | None, *, is_number: bool | None
) -> tuple[Floats, Missing, bool]:
    """Return when things were: numbers as they are, dates and times in microseconds since 1970.

    Texts are numbers if they all are, else ISO dates; `is_number` says which the column was so far.

    Raises:
        DataError: neither numbers nor dates, or first one and then the other.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = cells.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if is_number is not False:
            try:
                return *numbers(cells, where, decimal), True
            except DataError:
                if is_number:
                    raise
        cells = _dates(cells, where)
    elif not pa.types.is_temporal(kind):
        return *numbers(cells, where, decimal), True
    else:
        cells = pc.cast(cells, pa.timestamp("us"), safe=False)
    values, missing = numbers(pc.cast(cells, pa.int64()), where, None)
    return values, missing, False


def _parsed(cells: Any, where: str, decimal: str) -> Any:
    import pyarrow as pa
    from pyarrow import compute as pc

    cells = pc.utf8_trim_whitespace(cells)
    if decimal != ".":
        cells = pc.replace_substring(cells, decimal, ".")
    try:
        return pc.cast(cells, pa.float64())
    except pa.ArrowInvalid:
        wrong = sum(not _is_number(cell) for cell in cells.to_pylist() if cell is not None)
        raise DataError(f"{where}: {wrong} of {len(cells)} values are no numbers") from None


def _dates(cells: Any, where: str) -> Any:
    import pyarrow as pa
    from pyarrow import compute as pc

    for zone in (None, "UTC"):  # all without an offset from UTC, or all with one
        try:
            return pc.cast(cells, pa.timestamp("us", zone))
        except pa.ArrowInvalid:
            continue
    raise DataError(
        f"{where}: neither numbers nor all dates of one form, as in 2026-01-31T12:00:00"
    )


def _is_number(text: str) -> bool:
    import pyarrow as pa

    try:
        pa.array([text]).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def _as_text(cells: Any, where: str) -> Any:
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = cells.type
    if pa.types.is_dictionary(kind):
        cells = cells.dictionary_decode()
        kind = cells.type
    if pa.types.is_floating(kind):
        cells = pc.if_else(pc.is_nan(cells), pa.scalar(None, kind), cells)
    try:
        return pc.utf8_trim_whitespace(pc.cast(cells, pa.string()))
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise DataError(f"{where} has type {kind}, expected names") from None
