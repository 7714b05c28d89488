"""Which lineages seem to share records: sketches kept in HOME/data, compared, acknowledged.

For the site's administrator alone (`data check`, `doctor`, `ledger open-lineage`). No order asks:
whether data overlap follows from records, and a refusal for it would tell of them unpaid.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import DataError, ProtocolError
from fedfactory.durable_file import create_durably, write_durably
from fedfactory.tasks.table import load_task
from site_agents.data.raw_records import TABLES, of_pieces, of_table
from site_agents.data.sketch import SALT_BYTES, Overlap, Sketch, overlap, sketch
from site_agents.data.sources import open_source
from site_agents.data.versions import FOLDER
from site_agents.policy import Policy
from site_agents.task_values import first_values, written_values

SALT: Final = "overlap.salt"
SKETCHES: Final = "sketches"
ACKNOWLEDGED: Final = "acknowledged.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """Who said that two lineages share no records although they seem to, and why."""

    lineages: tuple[str, ...]
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _AllAcknowledged:
    pairs: tuple[Acknowledged, ...]


def sketch_source(
    home: Path, name: str, options: Mapping[str, Any], policy: Policy
) -> Sketch | None:
    """Return the sketch of a source; None if it is no table and no task of the policy reads it.

    Raises:
        DataError, UsageError: the data cannot be read.
    """
    lineage, salt = policy.data[name].lineage, _salt(home)
    if options.get("kind") in TABLES:
        return sketch(lineage, of_table(options), salt)
    found: Sketch | None = None
    for task_name, rule in policy.tasks.items():
        task = load_task(task_name)
        schema = task.data_schema({**written_values(task), **first_values(rule)})
        if schema is None:
            continue
        try:
            pieces = open_source(name, options, lineage).pieces(schema)
            one = sketch(lineage, of_pieces(pieces), salt)
        except DataError:
            if rule.source == name:
                raise
            continue  # a task that another source serves
        found = one if found is None else found.merged(one)
    return found


def find_overlaps(
    home: Path, name: str, options: Mapping[str, Any], policy: Policy
) -> list[Overlap]:
    """Read a source, keep its sketch, and return the lineages that it overlaps unacknowledged.

    Raises:
        DataError, UsageError: the data cannot be read, or the home cannot be written.
    """
    found = sketch_source(home, name, options, policy)
    if found is None:
        return []
    keep_sketch(home, found)
    return overlaps_with(home, found)


def keep_sketch(home: Path, found: Sketch) -> None:
    """Put a sketch on record, with those of the lineage's earlier versions; durable.

    Raises:
        DataError: the home cannot be written.
    """
    path = _path(home, found.lineage)
    with suppress(FileNotFoundError):
        found = _read(path).merged(found)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, to_json(found))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def overlaps_with(home: Path, found: Sketch) -> list[Overlap]:
    """Return which lineages on record one overlaps, but for those acknowledged."""
    others = (other for other in _sketches(home) if other.lineage != found.lineage)
    seen = (overlap(found, other) for other in others)
    known = {frozenset(pair.lineages) for pair in acknowledged(home)}
    return [one for one in seen if one is not None and frozenset(one.lineages) not in known]


def sketched_lineages(home: Path) -> frozenset[str]:
    """Return the lineages on record, also those that no policy names any more. Raises DataError."""
    return frozenset(found.lineage for found in _sketches(home))


def acknowledged(home: Path) -> tuple[Acknowledged, ...]:
    """Return what was acknowledged.

    Raises:
        DataError: the file is damaged.
    """
    path = home / FOLDER / ACKNOWLEDGED
    try:
        return from_json(_AllAcknowledged, path.read_bytes()).pairs
    except FileNotFoundError:
        return ()
    except (OSError, ProtocolError) as error:
        raise DataError(f"{path} is damaged: delete it, and acknowledge anew") from error


def acknowledge(home: Path, one: Acknowledged) -> None:
    """Keep an acknowledgement; durable. Raises DataError."""
    path = home / FOLDER / ACKNOWLEDGED
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(path, to_json(_AllAcknowledged(pairs=(*acknowledged(home), one))))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def _sketches(home: Path) -> Iterator[Sketch]:
    for path in sorted((home / FOLDER / SKETCHES).glob("*.json")):
        yield _read(path)


def _read(path: Path) -> Sketch:
    try:
        return from_json(Sketch, path.read_bytes())
    except ProtocolError as error:
        raise DataError(f"{path} is damaged: delete it, then: site-agent data check") from error


def _path(home: Path, lineage: str) -> Path:
    name = hashlib.sha256(lineage.encode()).hexdigest()[:32]  # a lineage's name may be no file's
    return home / FOLDER / SKETCHES / f"{name}.json"


def _salt(home: Path) -> bytes:
    """Return the site's own salt, made when first asked for; it never leaves."""
    path = home / FOLDER / SALT
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            create_durably(path, os.urandom(SALT_BYTES))
        found = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be made or read ({error.strerror})") from error
    if len(found) != SALT_BYTES:
        raise DataError(f"{path} is damaged: delete it and {path.parent / SKETCHES}, then check")
    return found
