"""`fedfactory resume RUN`: let a suspended, failed or stopped run go on from its last round."""

from __future__ import annotations

from collections.abc import Sequence

from fedfactory.cli.forms import tell_done
from fedfactory.cli.operating import add_run, connected, meant_run, operating


def run(words: Sequence[str]) -> int:
    """Ask for it; return 0 once the coordinator has taken it."""
    parser = operating(
        "resume",
        "Let a suspended, failed or stopped run go on from its last finished round. After a crash"
        " nobody needs to: a run goes on by itself.",
    )
    add_run(parser)
    asked = parser.parse_args(words)
    with connected(asked) as client:
        run_id = meant_run(client, asked.run).run_id
        told = client.resume(run_id)
    return tell_done(asked, told, run_id=run_id)
