"""Cells of one column of a table, as numbers, names or moments. Works on pyarrow arrays.

Every cell is read by itself: whatever one holds, it changes how no other is read. What is missing
(nulls, and numbers that are NaN) is kept apart from what is wrong; both are counted, never shown.
A column whose type cannot hold what is asked for is a DataError, also where it holds no cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.faults import Fault

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
_NUMBER: Final = r"^(?i:[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?(nan|inf|infinity))$"
_ZONED: Final = r"\d[Tt ].*([Zz]|[-+]\d\d(:?\d\d)?)$"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """`values` are 0 where cells are missing or wrong. `dates` says which cells were dates."""

    values: Floats
    missing: Mask
    wrong: Mask
    faults: tuple[Fault, ...]
    dates: Mask | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Names:
    """`codes` into `names`, -1 where cells are missing or wrong."""

    codes: NDArray[np.int64]
    names: list[str]
    missing: Mask
    wrong: Mask
    faults: tuple[Fault, ...]


def numbers(cells: Any, column: str, where: str, decimal: str | None) -> Cells:
    """Return cells as float64; texts are read as numbers with the sign `decimal` (None: refused).

    `column` names the column in faults, `where` the table in errors.

    Raises:
        DataError: a type that holds no numbers.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = cells.type
    if _is_text(kind):
        if decimal is None:
            raise DataError(f"{where}: {column} holds texts, expected numbers")
        cells, wrong = _parsed(cells, decimal)
        return _finite(cells, wrong, column)
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(f"{where}: {column} has type {kind}, expected numbers")
    if pa.types.is_boolean(kind):
        cells = pc.cast(cells, pa.int8())
    found = pc.cast(cells, pa.float64(), safe=False)
    return _finite(found, np.zeros(len(found), np.bool_), column)


def named(cells: Any, column: str, where: str) -> Names:
    """Return cells as codes into a list of names. Whole numbers are their digits.

    Raises:
        DataError: a type that has no names.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    text, wrong = _as_text(cells, column, where)
    encoded = pc.dictionary_encode(pc.utf8_trim_whitespace(text))
    codes = np.array(pc.fill_null(pc.cast(encoded.indices, pa.int64()), -1), dtype=np.int64)
    return Names(
        codes=codes,
        names=encoded.dictionary.to_pylist(),
        missing=(codes < 0) & ~wrong,
        wrong=wrong,
        faults=_faults(wrong, f"{column}: ", " values are no text"),
    )


def moments(cells: Any, column: str, where: str, decimal: str | None) -> Cells:
    """Return when things were: numbers as they are, dates and times in microseconds since 1970.

    A text is a number if it reads as one, else an ISO date.

    Raises:
        DataError: a type that holds neither.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = cells.type
    if _is_text(kind) and decimal is not None:
        return _written_moments(cells, column, decimal)
    if not pa.types.is_temporal(kind):
        return numbers(cells, column, where, decimal)
    try:
        since = pc.cast(pc.cast(cells, pa.timestamp("us"), safe=False), pa.int64())
    except pa.ArrowNotImplementedError:
        raise DataError(f"{where}: {column} has type {kind}, expected dates") from None
    return replace(numbers(since, column, where, None), dates=np.ones(len(cells), np.bool_))


def cast_each(cells: Any, kind: Any) -> tuple[Any, Mask]:
    """Cast cell by cell: return the cells, null where that fails, and where it failed."""
    import pyarrow as pa
    from pyarrow import compute as pc

    try:
        return pc.cast(cells, kind), np.zeros(len(cells), np.bool_)
    except pa.ArrowInvalid:
        if len(cells) == 1:
            return pa.nulls(1, kind), np.ones(1, np.bool_)
    half = len(cells) // 2
    parts = [cast_each(part, kind) for part in (cells.slice(0, half), cells.slice(half))]
    return pa.concat_arrays([part for part, _ in parts]), np.concatenate([w for _, w in parts])


def _finite(found: Any, wrong: Mask, column: str) -> Cells:
    from pyarrow import compute as pc

    values: Floats = np.array(pc.fill_null(found, float("nan")), dtype=np.float64)
    infinite, missing = np.isinf(values), np.isnan(values) & ~wrong
    values[~np.isfinite(values)] = 0.0
    return Cells(
        values=values,
        missing=missing,
        wrong=wrong | infinite,
        faults=(
            *_faults(wrong, f"{column}: ", " values are no numbers"),
            *_faults(infinite, f"{column}: ", " values are not finite"),
        ),
    )


def _parsed(cells: Any, decimal: str) -> tuple[Any, Mask]:
    import pyarrow as pa
    from pyarrow import compute as pc

    cells = pc.utf8_trim_whitespace(cells)
    if decimal != ".":
        cells = pc.replace_substring(cells, decimal, ".")
    return cast_each(cells, pa.float64())


def _written_moments(cells: Any, column: str, decimal: str) -> Cells:
    import pyarrow as pa
    from pyarrow import compute as pc

    cells = pc.utf8_trim_whitespace(cells)
    plain = pc.replace_substring(cells, decimal, ".") if decimal != "." else cells
    is_number, is_zoned = _matches(plain, _NUMBER), _matches(cells, _ZONED)
    there = np.array(pc.is_valid(cells))
    values, wrong = np.full(len(cells), np.nan), np.zeros(len(cells), np.bool_)
    dates = there & ~is_number
    for chosen, texts, kind in (
        (is_number, plain, pa.float64()),
        (dates & ~is_zoned, cells, pa.timestamp("us")),
        (dates & is_zoned, cells, pa.timestamp("us", "UTC")),
    ):
        found, failed = cast_each(texts.filter(pa.array(chosen)), kind)
        if kind != pa.float64():
            found = pc.cast(pc.cast(found, pa.int64()), pa.float64(), safe=False)
        values[chosen] = np.array(pc.fill_null(found, float("nan")), dtype=np.float64)
        wrong[chosen] = failed
    infinite = np.isinf(values)
    missing = np.isnan(values) & ~wrong
    values[~np.isfinite(values)] = 0.0
    return Cells(
        values=values,
        missing=missing,
        wrong=wrong | infinite,
        faults=(
            *_faults(
                wrong,
                f"{column}: ",
                " values are neither numbers nor dates, as in 2026-01-31T12:00:00",
            ),
            *_faults(infinite, f"{column}: ", " values are not finite"),
        ),
        dates=dates,
    )


def _matches(cells: Any, pattern: str) -> Mask:
    from pyarrow import compute as pc

    return np.array(pc.fill_null(pc.match_substring_regex(cells, pattern), False), np.bool_)


def _as_text(cells: Any, column: str, where: str) -> tuple[Any, Mask]:
    """Return cells as texts, and which of them are no text: a file's bytes need not be UTF-8."""
    import pyarrow as pa
    from pyarrow import compute as pc

    kind = cells.type
    if pa.types.is_dictionary(kind):
        cells = cells.dictionary_decode()
        kind = cells.type
    try:
        if _is_text(kind):
            return cast_each(pc.cast(cells, pa.binary()), pa.string())
        if pa.types.is_floating(kind):
            cells = pc.if_else(pc.is_nan(cells), pa.scalar(None, kind), cells)
        return cast_each(cells, pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise DataError(f"{where}: {column} has type {kind}, expected names") from None


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _faults(which: Mask, before: str, after: str) -> tuple[Fault, ...]:
    count = int(which.sum())
    return (Fault(before=before, after=after, count=count, total=len(which)),) if count else ()
