"""Why sites did not contribute, as lines for a person: a sentence, and the events that show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from fedfactory.report.terminal import shown
from fedfactory.rounds.events import Event
from fedfactory.rounds.explanation import Explained, explain


def explained(
    events: Sequence[Event], site: str | None, number: int | None
) -> tuple[Explained, ...]:
    """Return what is to be told: of one site everything, of all only who did not contribute."""
    found = explain(events, site, number)
    return found if site is not None else tuple(one for one in found if not one.contributed)


def rounds_begun(events: Sequence[Event]) -> list[int]:
    """Return the numbers of the rounds that can be explained, ascending."""
    return sorted({one.round for one in explain(events, None, None)})


def explained_lines(
    found: Sequence[Explained], events: Sequence[Event], *, evidence: bool
) -> Iterator[str]:
    """Yield a sentence each, and below it the events that show it, by number and time."""
    if not found:
        yield "every site that was asked contributed"
    for one in found:
        yield shown(one.sentence)
        if evidence:
            for number in one.evidence:
                yield shown(f"    event {number}, {_words(events[number])}")


def _words(event: Event) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    about = [
        str(getattr(event, name))
        for name in ("kind", "site", "code", "reason")
        if getattr(event, name, None)
    ]
    return f"{at}: {' '.join([type(event).__name__, *about])}"
