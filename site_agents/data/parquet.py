"""`parquet`: a typed table, read in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.examples import DataSchema
from site_agents.data.file_source import FileSource
from site_agents.data.files import open_file
from site_agents.data.options import absolute_path, read_options
from site_agents.data.pieces import Piece
from site_agents.data.profile import ColumnProfile, Profile
from site_agents.data.table_form import Roles, TableForm

PIECE_ROWS: Final = 1 << 16
BUFFER_BYTES: Final = 1 << 20  # of each column; by default pyarrow fetches row groups ahead, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetOptions:
    """See Roles."""

    path: str
    columns: Mapping[str, str] = field(default_factory=dict)
    map: Mapping[str, Mapping[str, str | int]] = field(default_factory=dict)
    missing: Mapping[str, str | float] = field(default_factory=dict)
    unit: str | None = None


class Parquet(FileSource):
    """One Parquet file."""

    piece_rows: int = PIECE_ROWS

    def read_options(self, options: Mapping[str, Any]) -> None:
        """See Source."""
        self._options = read_options(ParquetOptions, self.name, options)
        self.path = absolute_path(self.name, self._options.path)

    @property
    def by_unit(self) -> bool:
        """See Source."""
        return self._options.unit is not None

    def check_form(self, schema: DataSchema) -> None:
        """See Source: its footer, and no row."""
        with self._opened() as file:
            self._table_form(schema, file).check_form(file.schema_arrow)

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        with self._opened() as file:
            form = self._table_form(schema, file)
            for batch in file.iter_batches(
                self.piece_rows, columns=form.columns, use_threads=False
            ):
                if batch.num_rows:
                    yield form.piece(batch)

    def _table_form(self, schema: DataSchema, file: Any) -> TableForm:
        options = self._options
        roles = Roles(
            columns=options.columns, map=options.map, missing=options.missing, unit=options.unit
        )
        names = list(file.schema_arrow.names)
        return TableForm(schema, roles, names, str(self.path), decimal=None)

    def profile(self) -> Profile:
        """See Source."""
        with self._opened() as file:
            kinds = file.schema_arrow
            missing = [0] * len(kinds)
            for batch in file.iter_batches(self.piece_rows, use_threads=False):
                for i in range(len(kinds)):
                    missing[i] += batch.column(i).null_count
            return Profile(
                records=file.metadata.num_rows,
                columns=tuple(
                    ColumnProfile(name=kind.name, form=str(kind.type), missing=count)
                    for kind, count in zip(kinds, missing, strict=True)
                ),
            )

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the file; what is wrong with it while it is read is a DataError without values."""
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with (
                open_file(self.path) as raw,
                parquet.ParquetFile(raw, buffer_size=BUFFER_BYTES, pre_buffer=False) as file,
            ):
                yield file
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path}: not a whole Parquet file ({type(error).__name__})"
            ) from None
