"""What a worker is started with and what it says of its data, as they go through its pipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """One data source as a worker opens it.

    `lineage` and `unit` are the policy's: the name of its population, and "row" or the column whose
    value all rows of one privacy unit share.
    """

    options: Mapping[str, Any]
    lineage: str
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What an agent may know of a source under a task: true counts, which stay at the site.

    `fingerprint` names the version of the data.
    """

    train: int
    evaluate: int
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """`sources` by name; `threads` of the worker; `device` is cpu or cuda:<index>."""

    site: str
    sources: Mapping[str, SourceOptions]
    threads: int
    device: str
