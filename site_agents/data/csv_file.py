"""`csv`: a text table with a header, read in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from typing import Any, Final

from fedfactory.contracts.errors import DataError, ValueRangeError
from fedfactory.tasks.examples import DataSchema
from site_agents.data.file_source import FileSource
from site_agents.data.files import file_starts_with, open_file
from site_agents.data.options import absolute_path, read_options
from site_agents.data.pieces import Piece
from site_agents.data.profile import ColumnProfile, Profile
from site_agents.data.table_form import Roles, TableForm
from site_agents.data.versions import Version

PIECE_BYTES: Final = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
    """`null` lists the texts that mean a missing value. The rest: see Roles."""

    path: str
    columns: Mapping[str, str] = field(default_factory=dict)
    map: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)
    missing: Mapping[str, str | float] = field(default_factory=dict)
    unit: str | None = None
    delimiter: str = ","
    decimal: str = "."
    encoding: str = "utf8"
    null: tuple[str, ...] = ("",)


class Csv(FileSource):
    """One CSV file. Every cell is read as text; roles say what it is."""

    piece_bytes: int = PIECE_BYTES

    def read_options(self, options: Mapping[str, Any]) -> None:
        """See Source."""
        self._options = found = read_options(CsvOptions, self.name, options)
        for key, text in (("delimiter", found.delimiter), ("decimal", found.decimal)):
            if len(text) != 1 or not text.isascii():
                raise ValueRangeError(f"data.{self.name}.{key}", repr(text), "one ASCII character")
        try:
            "".encode(found.encoding)
        except LookupError:
            raise ValueRangeError(
                f"data.{self.name}.encoding", found.encoding, "an encoding, as in utf8 or latin1"
            ) from None
        self.path = absolute_path(self.name, found.path)

    def starts_with(self, earlier: Version) -> bool:
        """See Source."""
        return file_starts_with(self.path, earlier)

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        options = self._options
        roles = Roles(
            columns=options.columns, map=options.map, missing=options.missing, unit=options.unit
        )
        form = TableForm(schema, roles, self._header(), str(self.path), decimal=options.decimal)
        first = 1
        with self._batches(form.columns, form.columns) as batches:
            for batch in batches:
                if batch.num_rows:
                    yield form.piece(batch, first)
                first += batch.num_rows

    def profile(self) -> Profile:
        """See Source."""
        names = self._header()
        records, missing = 0, [0] * len(names)
        with self._batches(names, None) as batches:
            for batch in batches:
                records += batch.num_rows
                for i in range(len(names)):
                    missing[i] += batch.column(i).null_count
        return Profile(
            records=records,
            columns=tuple(
                ColumnProfile(name=name, form="text", missing=count)
                for name, count in zip(names, missing, strict=True)
            ),
        )

    def _header(self) -> list[str]:
        with self._batches([], None) as batches:
            return list(batches.schema.names)

    @contextmanager
    def _batches(self, texts: list[str], columns: list[str] | None) -> Iterator[Any]:
        """Open the file, for `columns` (None: all), of which `texts` stay as they are written.

        What is wrong with it while it is read is a DataError without values.
        """
        import pyarrow as pa

        wrong: list[str] = []

        def note(row: Any) -> str:
            place = "" if row.number is None else f" {row.number}"
            wrong.append(
                f"row{place} has {row.actual_columns} cells, expected {row.expected_columns}"
            )
            return "error"

        options = self._options
        try:
            with open_file(self.path) as file:
                yield self._open(file, texts, columns, note)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            if "Empty CSV" in str(error):
                found = "holds no table, expected a header and rows"
            else:
                found = wrong[0] if wrong else f"not the text of a table in {options.encoding}"
            raise DataError(
                f"{self.path}: {found}; its delimiter is '{options.delimiter}' and its encoding"
                f" {options.encoding} by the site's configuration"
            ) from None

    def _open(
        self,
        file: BufferedReader,
        texts: list[str],
        columns: list[str] | None,
        on_wrong_row: Callable[[Any], str],
    ) -> Any:
        import pyarrow as pa
        from pyarrow import csv

        options = self._options
        return csv.open_csv(
            file,
            # One thread: rows are numbered in errors, and a worker's threads are counted.
            read_options=csv.ReadOptions(
                use_threads=False, block_size=self.piece_bytes, encoding=options.encoding
            ),
            parse_options=csv.ParseOptions(
                delimiter=options.delimiter,
                newlines_in_values=True,
                invalid_row_handler=on_wrong_row,
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(texts, pa.string()),
                include_columns=columns,
                null_values=list(options.null),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
