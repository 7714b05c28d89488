"""How much private work failed, by lineage and coordinator, since a person last resumed the site.

Whether work fails may follow from a record, and no budget pays for that. So failures are counted
over all runs and restarts: HOME/failures.json, until `site-agent resume` removes it. A coordinator
is paused on a lineage at MOST_FAILURES of its own, every coordinator at MOST_OF_LINEAGE.
Of one coordinator at most MOST_FAILURES count towards the lineage's: one that makes work
fail, with however many orders under way at once, pauses nobody else.
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
MOST_OF_LINEAGE: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Failed pieces of private work: lineage -> coordinator -> count."""

    counts: Mapping[str, Mapping[str, int]]

    def of_lineage(self, lineage: str) -> int:
        """Return how many count towards the lineage's limit."""
        by_coordinator = self.counts.get(lineage, {})
        return sum(min(count, MOST_FAILURES) for count in by_coordinator.values())

    def pauses(self, lineage: str, coordinator: str) -> str | None:
        """Return why a coordinator begins no private work on a lineage; None if it may. Pure."""
        own = self.counts.get(lineage, {}).get(coordinator, 0)
        if own >= MOST_FAILURES:
            found = f"{own} pieces of private work of coordinator '{coordinator}'"
        elif (whole := self.of_lineage(lineage)) >= MOST_OF_LINEAGE:
            found = f"{whole} pieces of private work of several coordinators"
        else:
            return None
        return (
            f"{found} failed on lineage '{lineage}': see the worker's log; site-agent resume"
            " permits more"
        )

    def lines(self) -> tuple[str, ...]:
        """Return one line for each lineage and coordinator, for the site's administrator."""
        return tuple(
            f"lineage '{lineage}', coordinator '{coordinator}': {count} of"
            f" {MOST_FAILURES} failures; {self.of_lineage(lineage)} of {MOST_OF_LINEAGE} of"
            f" the lineage{'; paused' if self.pauses(lineage, coordinator) else ''}"
            for lineage, counts in sorted(self.counts.items())
            for coordinator, count in sorted(counts.items())
        )


def read_failures(home: Path) -> Failures:
    """Return what was counted.

    Raises:
        OSError, ProtocolError: the file cannot be read, or is damaged.
    """
    try:
        return from_json(Failures, (home / FAILURES).read_bytes())
    except FileNotFoundError:
        return Failures(counts={})


def too_many_failures(home: Path, lineage: str, coordinator: str) -> str | None:
    """Return why a coordinator begins no private work on a lineage; a damaged file is a reason."""
    try:
        return read_failures(home).pauses(lineage, coordinator)
    except (OSError, ProtocolError):
        return broken_failures(home)


def broken_failures(home: Path) -> str:
    """Return what to say of a file that cannot be read."""
    return f"{home / FAILURES} cannot be read or is damaged: site-agent resume writes it anew"


def note_failure(home: Path, lineage: str, coordinator: str) -> None:
    """Count one more; durable when it returns. Not for several threads.

    Raises:
        OSError: it cannot be written.
        ProtocolError: the file is damaged.
    """
    counts = {name: dict(by) for name, by in read_failures(home).counts.items()}
    of_lineage = counts.setdefault(lineage, {})
    of_lineage[coordinator] = of_lineage.get(coordinator, 0) + 1
    write_durably(home / FAILURES, to_json(Failures(counts=counts)))


def forget_failures(home: Path) -> None:
    """A person looked: count from zero again. Raises OSError."""
    remove_durably(home / FAILURES)
