"""`python`: a data set that the site's own code makes, named by its import path.

The code is the site's, installed in the worker's environment; no order names it. It may do what it
likes; its errors are told by type and place alone, since their text may hold values of records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

import numpy as np

from fedfactory.contracts.errors import DataError, FedfactoryError, ValueRangeError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.columns import Classes
from fedfactory.tasks.examples import DataSchema
from site_agents.data.labels import LabelMap
from site_agents.data.options import read_options
from site_agents.data.pieces import Piece, whole_piece
from site_agents.data.profile import ColumnProfile, Profile
from site_agents.data.source import Source
from site_agents.data.versions import Version

PIECE_RECORDS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonOptions:
    """`target` is module:callable, called with `arguments`; `labels` as for NPZ files.

    It returns what has a length and, by index from 0, records (x, y) or (x, y, unit), the same at
    each call: a torch map-style Dataset will do. A method `fingerprint() -> str` may name its
    version; without it, every record is read for one.
    """

    target: str
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    labels: Mapping[str, str | int] = field(default_factory=dict)


class PythonDataset(Source):
    """One object of the site's own class."""

    def read_options(self, options: Mapping[str, Any]) -> None:
        """See Source."""
        self._options = found = read_options(PythonOptions, self.name, options)
        module, colon, attribute = found.target.partition(":")
        if not (module and colon and attribute):
            raise ValueRangeError(
                f"data.{self.name}.target", found.target, "module:callable, as in lab.data:Scans"
            )

    def version(self) -> Version:
        """See Source."""
        records = self._records()
        size = self._length(records)
        own = getattr(records, "fingerprint", None)
        digest = hashlib.sha256()
        if own is not None:
            with self._told("fingerprint"):
                digest.update(str(own()).encode())
        else:
            for number in range(size):
                for part in self._record(records, number):
                    array = np.asarray(part)
                    digest.update(f"{array.dtype} {array.shape}\n".encode())
                    digest.update(np.ascontiguousarray(array).tobytes())
        return Version(fingerprint=f"sha256:{digest.hexdigest()}", bytes=0, files=0)

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        records = self._records()
        size = self._length(records)
        for start in range(0, size, PIECE_RECORDS):
            numbers = range(start, min(size, start + PIECE_RECORDS))
            some = [self._record(records, number) for number in numbers]
            if len({len(record) for record in some}) != 1:
                raise DataError(f"{self.where}: some records have a unit and others have none")
            with self._told(f"records {numbers[0]} to {numbers[-1]}"):
                x = np.stack([np.asarray(record[0]) for record in some])
                y = np.asarray([np.asarray(record[1]).item() for record in some])
            unit = (
                [str(np.asarray(record[2]).item()) for record in some]
                if len(some[0]) == 3
                else None
            )
            mapped = isinstance(schema.label, Classes) and (
                y.dtype.kind not in "iub" or self._options.labels
            )
            if mapped:
                assert isinstance(schema.label, Classes)
                labels = LabelMap(schema.label, self._options.labels, self.where)
                y = labels.indices([str(v) for v in y.tolist()], self.where)
            yield whole_piece(x, y.astype(np.int64) if y.dtype.kind == "b" else y, unit)

    def profile(self) -> Profile:
        """See Source; the columns are the parts of the first record."""
        records = self._records()
        size = self._length(records)
        first = self._record(records, 0) if size else ()
        return Profile(
            records=size,
            columns=tuple(
                ColumnProfile(name=name, form=_form(part), missing=None)
                for name, part in zip(("x", "y", "unit"), first, strict=False)
            ),
        )

    @property
    def where(self) -> str:
        """See Source."""
        return f"data '{self.name}' ({self._options.target})"

    def _records(self) -> Any:
        """Make the object, anew each time: it may hold what its files held."""
        module, _, attribute = self._options.target.partition(":")
        with self._told("importing it"):
            target = import_module(module)
        with self._told("making it"):
            return getattr(target, attribute)(**self._options.arguments)

    def _length(self, records: Any) -> int:
        with self._told("its length"):
            return len(records)

    def _record(self, records: Any, number: int) -> Sequence[Any]:
        with self._told(f"record {number}"):
            record = tuple(records[number])
        if len(record) not in (2, 3):
            raise DataError(
                f"{self.where}: record {number} has {len(record)} parts, expected (x, y) or"
                " (x, y, unit)"
            )
        return record

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FedfactoryError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a site's own code raises
            raise DataError(f"{self.where}: {doing}: {_place(error)}") from None


def _form(part: Any) -> str:
    array = np.asarray(part)
    return f"{array.dtype} {array.shape}"


def _place(error: Exception) -> str:
    """Say what was raised and where, without its text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = ""
    if trace is not None:
        place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__}{place}"
