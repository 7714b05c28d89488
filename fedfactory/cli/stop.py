"""`fedfactory stop RUN`: end a run; the model of its last finished round stays."""

from __future__ import annotations

from collections.abc import Sequence

from fedfactory.cli.forms import tell_done
from fedfactory.cli.operating import add_run, connected, meant_run, operating


def run(words: Sequence[str]) -> int:
    """Ask for the stop; return 0 once the coordinator has taken it."""
    parser = operating(
        "stop", "Stop a run after the round under way. The last finished round's model stays."
    )
    add_run(parser)
    parser.add_argument("--now", action="store_true", help="leave the round under way unfinished")
    asked = parser.parse_args(words)
    with connected(asked) as client:
        run_id = meant_run(client, asked.run).run_id
        told = client.stop(run_id, "now" if asked.now else "after_round")
    return tell_done(asked, told, run_id=run_id)
