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
from numpy.typing import NDArray

from fedfactory.contracts.errors import DataError, FedfactoryError, ValueRangeError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.columns import Classes
from fedfactory.tasks.examples import DataSchema
from fedfactory.tasks.faults import Fault
from site_agents.data.labels import LabelMap, is_missing, name_of
from site_agents.data.options import read_options
from site_agents.data.pieces import Piece
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
                found = self._record(records, number)
                for part in found if isinstance(found, tuple) else (found.detail,):
                    digest.update(_content(part))
        return Version(fingerprint=f"sha256:{digest.hexdigest()}", bytes=0, files=0)

    def check_form(self, schema: DataSchema) -> None:
        """See Source: it can be made and has a length; no record is asked for."""
        if isinstance(schema.label, Classes):
            LabelMap(schema.label, self._options.labels, self.where)
        self._length(self._records())

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """See Source."""
        records = self._records()
        size = self._length(records)
        labels = None
        if isinstance(schema.label, Classes):
            labels = LabelMap(schema.label, self._options.labels, self.where)
        for start in range(0, size, PIECE_RECORDS):
            numbers = range(start, min(size, start + PIECE_RECORDS))
            found = [self._record(records, number) for number in numbers]
            parts = [_parts(record, schema, self._options.labels, labels) for record in found]
            yield self._piece(parts, schema, start)

    def _piece(self, parts: Sequence[_Parts | _Wrong], schema: DataSchema, start: int) -> Piece:
        """Put records together; those that are none keep their numbers."""
        count = len(parts)
        x = np.zeros((count, *schema.features), np.float64)
        y = np.zeros(count, np.float64)
        keep = np.zeros(count, np.bool_)
        units: list[str | None] = [None] * count
        wrong: dict[str, list[str]] = {}
        for i, found in enumerate(parts):
            if isinstance(found, _Wrong):
                wrong.setdefault(found.what, []).append(f"; record {start + i} {found.detail}")
            else:
                x[i], y[i], units[i], keep[i] = found.x, found.y, found.unit, True
        faults = [
            Fault(before="", after=what, count=len(which), total=count, example=which[0])
            for what, which in wrong.items()
        ]
        with_unit = sum(unit is not None for unit in units)
        if 0 < with_unit < int(keep.sum()):
            after = " records have a unit: some records have a unit and others have none"
            faults.append(Fault(before="", after=after, count=with_unit, total=count))
        return Piece(
            x=x,
            y=y,
            unit=units if with_unit else None,
            identity=None,
            order=None,
            keep=keep,
            faults=tuple(faults),
        )

    def profile(self) -> Profile:
        """See Source; the columns are the parts of the first record."""
        records = self._records()
        size = self._length(records)
        record = self._record(records, 0) if size else ()
        first = record if isinstance(record, tuple) else ()
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

    def _record(self, records: Any, number: int) -> tuple[Any, ...] | _Wrong:
        """Return a record's two or three parts, or what is wrong with it."""
        try:
            record = tuple(records[number])
        except Exception as error:  # noqa: BLE001  whatever a site's own code raises
            return _raised(error)
        if len(record) not in (2, 3):
            what = " records are not (x, y) or (x, y, unit)"
            return _Wrong(what=what, detail=f"has {len(record)} parts")
        return record

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FedfactoryError:
            raise
        except Exception as error:  # noqa: BLE001  whatever a site's own code raises
            raise DataError(f"{self.where}: {doing}: {_place(error)}") from None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """One record in the task's form: `y` is the index of a class, or a number."""

    x: NDArray[Any]
    y: float
    unit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wrong:
    """What is wrong with a record, as with others of its kind, and in detail."""

    what: str
    detail: str


def _raised(error: Exception) -> _Wrong:
    return _Wrong(what=" records raise an error", detail=f"raises {_place(error)}")


def _parts(
    record: tuple[Any, ...] | _Wrong,
    schema: DataSchema,
    mapped: Mapping[str, str | int],
    labels: LabelMap | None,
) -> _Parts | _Wrong:
    """Return a record in the task's form, or what is wrong with it."""
    if isinstance(record, _Wrong):
        return record
    try:
        x, y = np.asarray(record[0]), np.asarray(record[1]).item()
        unit = np.asarray(record[2]).item() if len(record) == 3 else None
        if labels is not None and (mapped or not isinstance(y, int | float)):
            y = labels.index_of(name_of(y))
            if y < 0:
                return _Wrong(what=labels.unknown(1, 1, "").after, detail="has another")
        if detail := _misfit(x, y, schema):
            return _Wrong(what=" records are not in the task's form", detail=detail)
        return _Parts(x=x, y=float(y), unit=None if is_missing(unit) else name_of(unit))
    except Exception as error:  # noqa: BLE001  objects of a site's own may do anything
        return _raised(error)


def _misfit(x: NDArray[Any], y: object, schema: DataSchema) -> str | None:
    if x.dtype.kind not in "fiu":
        return f"gives TypeError: x has dtype {x.dtype}, expected numbers (float32)"
    if x.shape != schema.features:
        return f"gives ValueError: x has shape {x.shape}, expected {schema.features}"
    if not isinstance(y, int | float):
        return f"gives TypeError: y is a {type(y).__name__}, expected a number"
    return None


def _content(part: Any) -> bytes:
    """Return what tells a record's part from another; of one that is no array, that it is none."""
    try:
        array = np.asarray(part)
        if array.dtype.hasobject:
            return repr(part).encode(errors="replace")
        return f"{array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes()
    except Exception as error:  # noqa: BLE001  objects of a site's own may do anything
        return type(error).__name__.encode()


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
