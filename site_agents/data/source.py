"""What a data source is: a site's own data, read and never written, in the form of any task.

A kind says how its records are read; putting them into train and test is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedfactory.contracts.errors import DataError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import DataSchema, SiteData
from fedfactory.tasks.growing import MEMORY_BYTES
from fedfactory.tasks.task import Task
from site_agents.data.files import Stamp
from site_agents.data.pieces import Piece, PrivateData, gather, gather_privately
from site_agents.data.profile import Profile
from site_agents.data.split import Split
from site_agents.data.versions import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How many examples there are to train and to evaluate on. These counts stay at the site."""

    train: int
    evaluate: int


class Source(ABC):
    """One source, by the name, options and lineage that the site gives it.

    `memory_bytes` bounds an array in memory; what is larger rests on disk (fedfactory.tasks
    .growing). Nothing is read before it is asked for. No error holds a value of a record.
    """

    memory_bytes: int = MEMORY_BYTES

    def __init__(self, name: str, options: Mapping[str, Any], lineage: str) -> None:
        self.name = name
        self.lineage = lineage
        self.read_options(options)

    @abstractmethod
    def read_options(self, options: Mapping[str, Any]) -> None:
        """Check the options of this kind and keep them.

        Raises:
            UsageError: a key that is missing or not known, or a value that does not fit.
        """

    @abstractmethod
    def version(self) -> Version:
        """Return which version of the data this is, by content.

        Raises:
            DataError: missing or unreadable.
        """

    def stamp(self) -> Stamp | None:
        """Return what changes whenever the data do, at little cost. None: only `version` tells.

        Raises:
            DataError: missing or unreadable.
        """
        return None

    def starts_with(self, earlier: Version) -> bool:
        """Whether the data begin with those of an earlier version. By default it is not known."""
        del earlier
        return False

    @property
    def by_unit(self) -> bool | None:
        """Whether records name their units; None: only the records tell."""
        return None

    def check_form(self, schema: DataSchema) -> None:
        """Check what can be checked of the data without reading a record of them.

        That they are there, their columns or arrays, and the types of these: nothing that one
        record could change. It comes before an order's budget is reserved, and its answer is seen.

        Raises:
            DataError: missing, unreadable, or of another form; it says what was expected.
        """
        del schema

    @abstractmethod
    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """Read all records in the source's order, a piece at a time.

        A record that does not fit keeps its place and number: its piece does not `keep` it, and
        counts it among the `faults`.

        Raises:
            DataError: missing, unreadable, or of another form; it says what was expected.
        """

    def null_pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """As `pieces`, where no record may change how another is read.

        By default they are the same.
        """
        return self.pieces(schema)

    @abstractmethod
    def profile(self) -> Profile:
        """Return the data's own form and counts, for the site's administrator.

        Raises:
            DataError: missing or unreadable.
        """

    @property
    def where(self) -> str:
        """How errors name the data."""
        return f"data '{self.name}'"

    def fingerprint(self) -> str:
        """Return the version's fingerprint, 'sha256:<hex>'."""
        return self.version().fingerprint

    def load(self, task: Task, parameters: Mapping[str, Scalar]) -> SiteData:
        """Return the data in the form of the task's schema, split by the lineage.

        Raises:
            DataError: missing, unreadable, of another form, or too few.
        """
        schema = schema_of(task, parameters)
        split = Split(self.lineage)
        return gather(self.pieces(schema), schema, split, self.where, self.memory_bytes)

    def load_privately(
        self, task: Task, parameters: Mapping[str, Scalar], *, by_unit: bool
    ) -> PrivateData:
        """Return the data as `load` does, for work under differential privacy.

        A record that does not fit counts as null, and is counted; there may be none that does.
        `by_unit`: whether the site's policy has a unit other than the row.

        Raises:
            DataError: missing, unreadable, or of another form: what `check_form` finds.
        """
        schema = schema_of(task, parameters)
        self.check_form(schema)
        split = Split(self.lineage)
        pieces = self.null_pieces(schema)
        return gather_privately(
            pieces, schema, split, self.where, self.memory_bytes, by_unit=by_unit
        )

    def sizes(self, task: Task, parameters: Mapping[str, Scalar]) -> Sizes:
        """Return how many examples `load` would give."""
        data = self.load(task, parameters)
        return Sizes(train=len(data.train), evaluate=len(data.test))


def schema_of(task: Task, parameters: Mapping[str, Scalar]) -> DataSchema:
    """Return the schema of a task that reads data.

    Raises:
        DataError: it reads none.
    """
    schema = task.data_schema(parameters)
    if schema is None:
        raise DataError(f"task '{task.name}' takes no data")
    return schema
