"""Why sites did not contribute, as lines for a person: a sentence, and the events that show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from fedfactory.report.terminal import shown
from fedfactory.report.text import spans
from fedfactory.rounds.events import Event
from fedfactory.rounds.explanation import Explained, explain, explain_evaluations

FEW_EVENTS: Final = 4


def explained(
    events: Sequence[Event], site: str | None, number: int | None
) -> tuple[Explained, ...]:
    """Return what is to be told: of one site everything, of all only who did not contribute."""
    trained = explain(events, site, number)
    if site is None:
        trained = tuple(one for one in trained if not one.contributed)
    found = (*trained, *explain_evaluations(events, site, number))
    return tuple(sorted(found, key=lambda one: one.round))


def rounds_begun(events: Sequence[Event]) -> list[int]:
    """Return the numbers of the rounds that can be explained, ascending."""
    return sorted({one.round for one in explain(events, None, None)})


def explained_lines(
    found: Sequence[Explained], events: Sequence[Event], *, evidence: bool
) -> Iterator[str]:
    """Yield a sentence each, and below it the events that show it, by number and time.

    Rounds of which the same is true share one sentence, and its events are cut to the first few.
    """
    if not found:
        yield "every site that was asked contributed"
    for alike in _grouped(found):
        yield shown(_sentence(alike))
        if evidence:
            numbers = sorted({number for one in alike for number in one.evidence})
            few = numbers if len(alike) == 1 else numbers[:FEW_EVENTS]
            for number in few:
                yield shown(f"    event {number}, {_words(events[number])}")
            if rest := numbers[len(few) :]:
                more = "1 event" if len(rest) == 1 else f"{len(rest)} events"
                yield f"    and {more} more, to event {rest[-1]} (--round N shows a round's)"


def _grouped(found: Sequence[Explained]) -> list[list[Explained]]:
    """Return what is said alike of one site in several rounds together, in order of the first."""
    groups: dict[tuple[str, str], list[Explained]] = {}
    for one in found:
        groups.setdefault((one.site, one.sentence.partition(": ")[2]), []).append(one)
    return list(groups.values())


def _sentence(alike: Sequence[Explained]) -> str:
    first = alike[0]
    head, _, told = first.sentence.partition(": ")
    numbers = spans(one.round for one in alike)
    return f"{head.removesuffix(str(first.round))}{numbers}: {told}"


def _words(event: Event) -> str:
    at = datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    about = [
        str(getattr(event, name))
        for name in ("kind", "site", "code", "reason")
        if getattr(event, name, None)
    ]
    return f"{at}: {' '.join([type(event).__name__, *about])}"
