"""`csv`: a text table with a header, read in pieces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from fedfactory.contracts.errors import ValueRangeError
from fedfactory.tasks.examples import DataSchema
from site_agents.data.column_names import presentable
from site_agents.data.csv_lines import CsvForm, CsvLines
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

    @property
    def by_unit(self) -> bool:
        """See Source."""
        return self._options.unit is not None

    def check_form(self, schema: DataSchema) -> None:
        """See Source: its header, and no row."""
        import pyarrow as pa

        with self._opened() as lines:
            form = self._table_form(schema, lines)
            form.check_form(pa.schema([(name, pa.string()) for name in form.columns]))

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        return self._pieces(schema, one_line=False)

    def null_pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source: a quote that one record opens ends with its line."""
        return self._pieces(schema, one_line=True)

    def profile(self) -> Profile:
        """See Source."""
        with self._opened() as lines:
            records, counts = 0, Counter(lines.names)
            columns = [name for name, times in counts.items() if times == 1]
            missing = dict.fromkeys(columns, 0)
            for found in lines.batches(columns, self.piece_bytes, one_line=False):
                records += found.records
                for name in columns:
                    missing[name] += found.batch.column(name).null_count
        declared = {*self._options.columns.values(), self._options.unit or ""}
        return Profile(
            records=records,
            columns=tuple(
                ColumnProfile(name=shown, form="text", missing=missing.get(name))
                for name, shown in zip(lines.names, presentable(lines.names, declared), strict=True)
            ),
        )

    def _pieces(self, schema: DataSchema, *, one_line: bool) -> Iterator[Piece]:
        with self._opened() as lines:
            form = self._table_form(schema, lines)
            for found in lines.batches(form.columns, self.piece_bytes, one_line=one_line):
                yield form.piece(found.batch).among(found.good, found.faults)

    def _table_form(self, schema: DataSchema, lines: CsvLines) -> TableForm:
        options = self._options
        roles = Roles(
            columns=options.columns, map=options.map, missing=options.missing, unit=options.unit
        )
        return TableForm(schema, roles, lines.names, str(self.path), decimal=options.decimal)

    @contextmanager
    def _opened(self) -> Iterator[CsvLines]:
        options = self._options
        form = CsvForm(delimiter=options.delimiter, encoding=options.encoding, null=options.null)
        with open_file(self.path) as file:
            yield CsvLines(file, form, str(self.path))
