"""Reads a data source for the site's administrator: `python -m site_agents.inspection`.

As a worker reads it: in a process of its own, kept off the network, since a source may be the
site's own code. A request comes on standard input, a finding goes to standard output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import FedfactoryError
from fedfactory.contracts.orders import Scalar
from fedfactory.tasks.table import load_task
from site_agents.config import POLICY_FILE
from site_agents.data.examination import Fit, examine
from site_agents.data.profile import Profile
from site_agents.data.source import Source
from site_agents.data.sources import open_source
from site_agents.data.versions import Change, Version, compare, read_version
from site_agents.overlaps import find_overlaps
from site_agents.policy_file import load_policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Under:
    """The tasks that a source is held against, with their parameters; else as `examine` says."""

    tasks: Mapping[str, Mapping[str, Scalar]]
    unit: str
    private: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What to look at: its version, held against that on record in `home`, and more at wish.

    `overlaps`: with the lineages that the policy in `home` and its sketches know.
    """

    home: str
    name: str
    options: Mapping[str, Any]
    lineage: str
    under: Under | None
    overlaps: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Its own form, and how it fits each task."""

    profile: Profile
    fits: tuple[Fit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found. `overlaps` are sentences; None: not compared, for the reason `unknown`."""

    version: Version
    change: Change
    content: Content | None
    overlaps: tuple[str, ...] | None
    unknown: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """What was found, or the `problem` for which the source cannot be read."""

    found: Found | None
    problem: str


def main() -> None:
    """Answer one request."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a source prints is not the answer
    asked = from_json(Inspection, sys.stdin.read())
    try:
        inspected = Inspected(found=_inspect(asked), problem="")
    except Exception as error:  # noqa: BLE001  a site's own reader may raise anything
        inspected = Inspected(found=None, problem=_told(error))
    with answers:
        answers.write(to_json(inspected))


def _inspect(asked: Inspection) -> Found:
    source = open_source(asked.name, asked.options, asked.lineage)
    version = source.version()
    recorded = read_version(Path(asked.home), asked.name)
    change = compare(asked.name, recorded, version, source.starts_with)
    content = None if asked.under is None else _content(source, asked.under)
    overlaps, unknown = _overlaps(asked) if asked.overlaps else (None, "")
    return Found(
        version=version, change=change, content=content, overlaps=overlaps, unknown=unknown
    )


def _content(source: Source, under: Under) -> Content:
    fits = tuple(
        examine(source, load_task(name), values, unit=under.unit, private=under.private)
        for name, values in under.tasks.items()
    )
    return Content(profile=source.profile(), fits=fits)


def _overlaps(asked: Inspection) -> tuple[tuple[str, ...] | None, str]:
    home = Path(asked.home)
    try:
        found = find_overlaps(home, asked.name, asked.options, load_policy(home / POLICY_FILE))
    except Exception as error:  # noqa: BLE001  a site's own reader may raise anything
        return None, _told(error)
    return tuple(one.sentence() for one in found), ""


def _told(error: Exception) -> str:
    """Return an error of ours in words; of another only its type: its text may hold records."""
    return str(error) if isinstance(error, FedfactoryError) else type(error).__name__


if __name__ == "__main__":
    main()
