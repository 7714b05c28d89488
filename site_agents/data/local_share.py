"""`partition`: in local mode, one site's share of a task's bundled set or of a file.

Such data are public, generated or the caller's own to play with. The share follows from the run's
seed, as does its split: a fifth of its units, exactly, are for testing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfactory.contracts.codec import digest_of
from fedfactory.contracts.errors import DataError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.examples import DataSchema, Examples, Labels, SiteData
from fedfactory.tasks.task import Task
from site_agents.data.files import Stamp, stamp_of_file, version_of_file
from site_agents.data.npz import NpzOptions, npz_pieces
from site_agents.data.options import read_options
from site_agents.data.partition import Indices, split, train_and_test
from site_agents.data.pieces import Piece, PrivateData
from site_agents.data.profile import Profile
from site_agents.data.source import Source, schema_of
from site_agents.data.versions import Version

DECILES = np.arange(0.1, 0.95, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionOptions:
    """`partition` is {kind, alpha, labels_per_site}; `path` an NPZ file, None the bundled set."""

    task: str
    path: str | None
    partition: Mapping[str, Scalar]
    sites: tuple[str, ...]
    site: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One local site's share: examples to train on and to test on, and privacy units of both.

    `labels` counts the examples of each class; numbers are counted by decile.
    """

    site: str
    train: int
    test: int
    units: int
    labels: Mapping[int, int]


class LocalShare(Source):
    """One site's share."""

    def read_options(self, options: Mapping[str, Any]) -> None:
        """See Source."""
        self._options = read_options(PartitionOptions, self.name, options)

    def version(self) -> Version:
        """See Source."""
        path = self._options.path
        found = version_of_file(Path(path)) if path else Version(fingerprint="", bytes=0, files=0)
        return replace(found, fingerprint=digest_of([found.fingerprint, self._options]))

    def stamp(self) -> Stamp:
        """See Source; bundled data never change."""
        path = self._options.path
        return stamp_of_file(Path(path)) if path else ()

    def check_form(self, schema: DataSchema) -> None:
        """See Source. A share of a file serves no private work: its ledger ends with the run."""
        del schema
        if self._options.path is not None:
            raise DataError(
                f"data '{self.name}' is a share of {self._options.path}: under differential privacy"
                " local mode serves bundled or generated data only"
            )

    def pieces(self, schema: DataSchema) -> Iterator[Piece]:
        """Not for a share: it is cut from the whole."""
        del schema
        raise DataError(f"data '{self.name}' is a share of a run in local mode: it has no pieces")

    def load_privately(
        self, task: Task, parameters: Mapping[str, Scalar], *, by_unit: bool
    ) -> PrivateData:
        """See Source. Bundled and generated data are public, and fit."""
        del by_unit
        self.check_form(schema_of(task, parameters))
        return PrivateData(data=self.load(task, parameters), faults=())

    def profile(self) -> Profile:
        """A share has no form of its own."""
        return Profile(records=0, columns=())

    def load(self, task: Task, parameters: Mapping[str, Scalar]) -> SiteData:
        """See Source; the split follows from the run's seed."""
        options = self._options
        if task.name != options.task:
            raise DataError(f"data '{self.name}' is a share for task '{options.task}' alone")
        whole = _whole(options, task, parameters)
        return _Shares(whole, options).data(options.site, options.seed)


def describe_shares(
    options: Mapping[str, Any], task: Task, parameters: Mapping[str, Scalar]
) -> list[Share]:
    """Return what each local site would hold; raises what loading it would raise."""
    parsed = read_options(PartitionOptions, "share", options)
    whole = _whole(parsed, task, parameters)
    shares = _Shares(whole, parsed)
    return [shares.describe(site, parsed.seed) for site in shares.by_site]


class _Shares:
    """Examples dealt to sites, all of a unit to one."""

    def __init__(self, whole: Examples, options: PartitionOptions) -> None:
        self._whole = whole
        kinds = self._kinds = _kinds(whole.y)
        self._rows: list[Indices] | None = None
        if whole.unit is not None:
            order = np.argsort(whole.unit, kind="stable")
            _, firsts = np.unique(whole.unit[order], return_index=True)
            self._rows = np.split(order, firsts[1:])
            kinds = np.array([np.bincount(kinds[rows]).argmax() for rows in self._rows])
        self.by_site = split(kinds, options.sites, options.partition, options.seed)

    def data(self, site: str, seed: int) -> SiteData:
        train, test = train_and_test(self.by_site[site], site, seed)
        return SiteData(
            train=self._whole.take(self._examples(train)),
            test=self._whole.take(self._examples(test)),
        )

    def describe(self, site: str, seed: int) -> Share:
        units = self.by_site[site]
        train, test = (self._examples(part) for part in train_and_test(units, site, seed))
        found, counts = np.unique(self._kinds[self._examples(units)], return_counts=True)
        return Share(
            site=site,
            train=len(train),
            test=len(test),
            units=len(units),
            labels=dict(zip(found.tolist(), counts.tolist(), strict=True)),
        )

    def _examples(self, units: Indices) -> Indices:
        if self._rows is None:
            return units
        rows: Indices = np.concatenate([self._rows[unit] for unit in units])
        return np.sort(rows)


def _kinds(y: Labels) -> NDArray[np.int64]:
    """Return what a partition deals by: classes, or the deciles of numbers."""
    kinds = y if y.dtype.kind == "i" else np.digitize(y, np.quantile(y, DECILES))
    return kinds.astype(np.int64)


def _whole(options: PartitionOptions, task: Task, parameters: Mapping[str, Scalar]) -> Examples:
    schema = schema_of(task, parameters)
    if options.path is None:
        return task.bundled(task.data_parameters_of(parameters))
    unit = "unit" if schema.windows is not None else None
    pieces = list(npz_pieces(NpzOptions(path=options.path, unit=unit), schema))
    if not pieces:
        raise DataError(f"{options.path}: holds no examples")
    for fault in (fault for piece in pieces for fault in piece.faults):
        raise DataError(f"{options.path}: {fault.sentence}")
    parts = [schema.check(piece.x, piece.y, options.path) for piece in pieces]
    names = [str(name) for piece in pieces for name in piece.unit or ()]
    return Examples(
        x=np.concatenate([part.x for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        unit=np.unique(names, return_inverse=True)[1] if unit else None,
    )
