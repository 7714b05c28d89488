"""A site's data by the name its own configuration gives it. Orders never name data.

`partition`: in local mode, the site's share of a task's bundled set or of a file.
`npz`: a file of the site's own with `x` and `y`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedfactory.contracts.errors import DataError
from fedfactory.tasks.examples import Examples, SiteData
from fedfactory.tasks.table import load_task
from fedfactory.tasks.task import Task
from site_agents.data.partition import MIN_EXAMPLES, split, train_and_test


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One local site's share: how many examples to train on and to test on, and of which class."""

    site: str
    train: int
    test: int
    labels: Mapping[int, int]


def load_site_data(options: Mapping[str, Any], site: str, task: Task) -> SiteData:
    """Return a site's data in the form of the task's schema.

    Raises:
        DataError: missing, unreadable, of another form, or too few.
    """
    if options["source"] == "partition":
        examples = _whole(options, task)
        share = split(examples.y, options["sites"], options["partition"], options["seed"])[site]
    else:
        examples = read_npz(Path(options["path"] or ""), task)
        if len(examples) < MIN_EXAMPLES:
            raise DataError(
                f"{options['path']}: holds {len(examples)} examples, expected at least"
                f" {MIN_EXAMPLES}"
            )
        share = np.arange(len(examples))
    train, test = train_and_test(share, site, options["seed"])
    return SiteData(train=examples.take(train), test=examples.take(test))


def describe_shares(options: Mapping[str, Any]) -> list[Share]:
    """Return what each local site would hold; raises what loading it would raise."""
    task = load_task(options["task"])
    labels = _whole(options, task).y
    shares = []
    for site, share in split(
        labels, options["sites"], options["partition"], options["seed"]
    ).items():
        train, test = train_and_test(share, site, options["seed"])
        found, counts = np.unique(labels[share], return_counts=True)
        histogram = dict(zip(found.tolist(), counts.tolist(), strict=True))
        shares.append(Share(site=site, train=len(train), test=len(test), labels=histogram))
    return shares


def read_npz(path: Path, task: Task) -> Examples:
    """Read an NPZ file with arrays x and y of the task's schema. Nothing in it is unpickled.

    Raises:
        DataError: says what was found and what was expected.
    """
    if task.data is None:
        raise DataError(f"task '{task.name}' takes no data")
    try:
        # Opened here: NumPy would leave a file that is no archive open.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if missing := {"x", "y"} - set(file.files):
                raise DataError(f"{path}: holds no array '{min(missing)}'; found {file.files}")
            x, y = file["x"], file["y"]
    except (OSError, ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        # NumPy's own sentence would advise unpickling the file.
        raise DataError(
            f"{path}: not a whole NPZ file of plain arrays;"
            " expected what numpy.savez(FILE, x=..., y=...) writes"
        ) from error
    return task.data.check(x, y, str(path))


def _whole(options: Mapping[str, Any], task: Task) -> Examples:
    path = options["path"]
    return read_npz(Path(path), task) if path else task.bundled()
