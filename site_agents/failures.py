"""How much private work failed on each lineage since a person last let the site go on.

Whether work fails may follow from a record, and no budget pays for that. So failures are counted
over all runs and restarts: HOME/failures.json, until `site-agent resume` takes it away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfactory.contracts.codec import from_json, to_json
from fedfactory.contracts.errors import ProtocolError
from fedfactory.durable_file import remove_durably, write_durably

FAILURES: Final = "failures.json"
MOST_FAILURES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failures:
    counts: Mapping[str, int]


def too_many_failures(home: Path, lineage: str) -> str | None:
    """Return why no private work is begun on a lineage; a file that does not hold is a reason."""
    try:
        counts = _read(home)
    except (OSError, ProtocolError):
        return f"{home / FAILURES} does not hold: site-agent resume writes it anew"
    if counts.get(lineage, 0) < MOST_FAILURES:
        return None
    return (
        f"{counts[lineage]} pieces of private work on lineage '{lineage}' failed: see the worker's"
        " log; site-agent resume lets it go on"
    )


def note_failure(home: Path, lineage: str) -> None:
    """Count one more; durable when it returns. Not for several threads.

    Raises:
        OSError: it cannot be written.
        ProtocolError: the file does not hold.
    """
    counts = dict(_read(home))
    counts[lineage] = counts.get(lineage, 0) + 1
    write_durably(home / FAILURES, to_json(_Failures(counts=counts)))


def forget_failures(home: Path) -> None:
    """A person looked: count from zero again. Raises OSError."""
    remove_durably(home / FAILURES)


def _read(home: Path) -> Mapping[str, int]:
    try:
        return from_json(_Failures, (home / FAILURES).read_bytes()).counts
    except FileNotFoundError:
        return {}
