"""`fedfactory explain RUN`: why a site did not contribute, in one sentence with the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedfactory.cli.arguments import count
from fedfactory.cli.completers import completed, known_sites
from fedfactory.cli.forms import print_json
from fedfactory.cli.operating import add_run, connected, meant_run, operating
from fedfactory.contracts.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from fedfactory.operator.client import OperatorClient
    from fedfactory.rounds.events import Event


def run(words: Sequence[str]) -> int:
    """Print one sentence per site and round; return 0."""
    parser = operating(
        "explain",
        "Say for each site that did not contribute to a round why, with the events that show it.",
    )
    add_run(parser)
    told = "this site alone, also where it contributed"
    completed(parser.add_argument("--site", metavar="S", help=told), known_sites)
    parser.add_argument("--round", type=count, metavar="N", help="this round alone")
    asked = parser.parse_args(words)
    with connected(asked) as client:
        row = meant_run(client, asked.run)
        if asked.site is not None and asked.site not in row.sites:
            raise UnknownNameError("site of this run", asked.site, row.sites)
        events = _events_so_far(client, row.run_id)
    from fedfactory.operator.explaining import explained, explained_lines, rounds_begun
    from fedfactory.wire.operations import STANDS

    begun = rounds_begun(events)
    so_far = f"rounds that have begun: {begun[0]} to {begun[-1]}" if begun else "no round has begun"
    if asked.round is not None and asked.round not in begun:
        raise UsageError(
            f"{row.run_id} {STANDS[row.status]}, and has no round {asked.round}: {so_far}"
        )
    found = explained(events, asked.site, asked.round)
    if asked.json:
        from fedfactory.contracts.codec import encode

        explanations = [encode(one) for one in found]
        print_json({"run_id": row.run_id, "status": row.status, "explained": explanations})
    elif not begun:
        why = f" ({row.reason})" if row.reason else ""
        print(f"{row.run_id} {STANDS[row.status]}{why}: {so_far}, so no site was asked")
    else:
        for line in explained_lines(found, events, evidence=not asked.quiet):
            print(line)
    return 0


def _events_so_far(client: OperatorClient, run_id: str) -> list[Event]:
    from fedfactory.operator.run_folder import read_sent

    watched = client.watch(run_id, follow=False)
    return [read_sent(run_id, piece.event).event for piece in watched if piece.event is not None]
