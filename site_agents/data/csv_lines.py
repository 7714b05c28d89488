"""The records of a CSV file, each by itself: what one of them holds changes how no other is read.

Under differential privacy a record is one line. Without it, a quoted value may go on over lines,
and one that never ends is found where it begins.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TextIO

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.faults import Fault

MAX_LINE: Final = 1 << 20  # characters of one record
_ERRORS: Final = "fedfactory.undecodable"
_UNDECODABLE: Final = "\uffff"  # no character of any text
csv.field_size_limit(MAX_LINE)


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _UNDECODABLE, error.end


codecs.register_error(_ERRORS, _mark)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvForm:
    """How a site's file is written; `null` lists the texts that mean a missing value."""

    delimiter: str
    encoding: str
    null: tuple[str, ...]

    @property
    def declared(self) -> str:
        """Say it, for an error."""
        return (
            f"its delimiter is '{self.delimiter}' and its encoding {self.encoding} by the site's"
            " configuration"
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lines:
    """Consecutive records: `good` (all of them,) says which are in `batch`, a row for each."""

    good: NDArray[np.bool_]
    batch: Any
    faults: tuple[Fault, ...]

    @property
    def records(self) -> int:
        """How many there are; an empty line is none."""
        return int(self.good.sum()) + sum(fault.count for fault in self.faults)


class CsvLines:
    """One open file, read from its begin to its end. `where` names it in errors.

    Raises:
        DataError: no header of a table.
    """

    def __init__(self, file: Any, form: CsvForm, where: str) -> None:
        self._text: TextIO = io.TextIOWrapper(file, encoding=form.encoding, errors=_ERRORS)
        self._form = form
        self._where = where
        self.names = self._header()

    def batches(
        self, columns: list[str], piece_characters: int, *, one_line: bool
    ) -> Iterator[Lines]:
        """Read all records, some at a time, for the named columns, every cell a text.

        `one_line`: no record is more than a line.
        """
        first = 1
        while text := self._text.read(piece_characters):
            text += self._rest_of_line(text)
            records = text.removesuffix("\n").split("\n")
            if not one_line and '"' in text:
                records = self._joined(records)
            yield self._lines(records, text, first, columns)
            first += len(records)

    def _header(self) -> list[str]:
        line = self._text.readline(MAX_LINE + 1).lstrip("\ufeff").rstrip("\n")
        if _UNDECODABLE in line or len(line) > MAX_LINE:
            raise DataError(
                f"{self._where}: not the text of a table in {self._form.encoding};"
                f" {self._form.declared}"
            )
        names = self._cells(line)
        while names is None and len(line) <= MAX_LINE and (more := self._text.readline(MAX_LINE)):
            line = f"{line}\n{more.removesuffix(chr(10))}"  # a name may go on over lines
            names = self._cells(line)
        if names is None or not line.strip() or "\0" in line:
            raise DataError(
                f"{self._where}: holds no table, expected a header and rows; {self._form.declared}"
            )
        return names

    def _rest_of_line(self, text: str) -> str:
        """Return what is missing of the last line; of one that is too long no more than a part."""
        if text.endswith("\n"):
            return ""
        rest = line = self._text.readline(MAX_LINE + 1)
        while len(rest) > MAX_LINE and line and not line.endswith("\n"):
            line = self._text.readline(MAX_LINE)
        return rest

    def _joined(self, lines: list[str]) -> list[str]:
        """Return records whose quoted values may go on over lines."""
        records: list[str] = []
        following = iter(lines)
        for line in following:
            record = line
            while record.count('"') % 2 and len(record) <= MAX_LINE and not self._cells(record):
                more = next(following, None)
                if more is None and not (more := self._text.readline(MAX_LINE + 1)):
                    break
                record = record + "\n" + more.removesuffix("\n")
            records.append(record)
        return records

    def _lines(self, records: list[str], text: str, first: int, columns: list[str]) -> Lines:
        """Sort out what is no record of the table; `first` is the first one's number."""
        good = self._plain(records, text)
        suspects = [i for i, is_plain in enumerate(good) if not is_plain]
        wrong: dict[str, tuple[int, str]] = {}
        for i in suspects:
            what, example = self._misfit(records[i])
            good[i] = what is None
            if what:
                count, before = wrong.get(what, (0, f"; row {first + i} after the header{example}"))
                wrong[what] = (count + 1, before)
        kept = [i for i, fits in enumerate(good) if fits]
        batches = []
        for some, batch in self._parsed([records[i] for i in kept], kept, columns):
            if batch is None:
                good[some[0]] = False
                wrong[" rows cannot be read"] = (1, f"; row {first + some[0]} after the header")
            else:
                batches.append(batch)
        return Lines(
            good=np.array(good, np.bool_),
            batch=_together(batches, columns),
            faults=tuple(
                Fault(
                    before="",
                    after=what,
                    count=count,
                    total=len(records),
                    example=f"{example}; {self._form.declared}",
                )
                for what, (count, example) in wrong.items()
            ),
        )

    def _plain(self, records: list[str], text: str) -> list[bool]:
        """Return which records have the right cells at first sight; each other one is looked at.

        Where the sight deceives, `_parsed` finds it.
        """
        delimiter, others = self._form.delimiter, len(self.names) - 1
        plain = [record.count(delimiter) == others for record in records]
        if '"' in text:
            even = [record.count('"') % 2 == 0 for record in records]
            plain = [one and other for one, other in zip(plain, even, strict=True)]
        if _UNDECODABLE in text or max(map(len, records)) > MAX_LINE:
            plain = [False] * len(records)
        return plain

    def _misfit(self, record: str) -> tuple[str | None, str]:
        """Say what is wrong with a line, and more of it; "": it is empty, which is no fault."""
        if not record.strip():
            return "", ""
        if len(record) > MAX_LINE:
            return f" rows are longer than {MAX_LINE} characters", ""
        if _UNDECODABLE in record:
            return f" rows are not the text of a table in {self._form.encoding}", ""
        cells = self._cells(record)
        if cells is None:
            return " rows open a quote that does not end in them", ""
        if len(cells) != len(self.names):
            more = f" has {len(cells)} cells, expected {len(self.names)}"
            return " rows have another number of cells than the header", more
        return None, ""

    def _cells(self, record: str) -> list[str] | None:
        """Return the cells of a record; None if a quote does not end in it."""
        delimiter = self._form.delimiter
        if '"' not in record:
            return record.split(delimiter)
        text = io.StringIO(record, newline="")
        try:
            rows = list(csv.reader(text, delimiter=delimiter, strict=True))
        except csv.Error:
            return None
        return rows[0] if len(rows) == 1 else None

    def _parsed(
        self, records: list[str], numbers: list[int], columns: list[str]
    ) -> Iterator[tuple[list[int], Any]]:
        """Yield records as batches of texts, with their numbers; None for one that has no row."""
        import pyarrow as pa

        if not records:
            return
        try:
            table = self._table("".join(f"{record}\n" for record in records), columns)
        except pa.ArrowInvalid:
            table = None
        if table is not None and table.num_rows == len(records):
            arrays = [pa.concat_arrays(table.column(name).chunks) for name in columns]
            yield numbers, pa.RecordBatch.from_arrays(arrays, columns)
        elif len(records) == 1:
            yield numbers, None
        else:  # the rows of two readers differ: find the record
            half = len(records) // 2
            yield from self._parsed(records[:half], numbers[:half], columns)
            yield from self._parsed(records[half:], numbers[half:], columns)

    def _table(self, text: str, columns: list[str]) -> Any:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        raw = text.encode(errors="replace")
        return arrow_csv.read_csv(
            io.BytesIO(raw),
            read_options=arrow_csv.ReadOptions(
                # One thread: a worker's threads are counted.
                use_threads=False,
                block_size=len(raw) + 1,
                column_names=self.names,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self._form.delimiter, newlines_in_values=True, ignore_empty_lines=False
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                include_columns=columns,
                null_values=list(self._form.null),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )


def _together(batches: list[Any], columns: list[str]) -> Any:
    """Return batches of texts as one."""
    import pyarrow as pa

    if len(batches) == 1:
        return batches[0]
    none = pa.array([], pa.string())
    arrays = [pa.concat_arrays([none, *(b.column(name) for b in batches)]) for name in columns]
    return pa.RecordBatch.from_arrays(arrays, columns)
