"""`fedfactory watch RUN`: follow a run live, or show one that is over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedfactory.cli.follow_run import follow, followed_folder
from fedfactory.cli.operating import add_run, connected, meant_run, operating


def run(words: Sequence[str]) -> int:
    """Follow a run; return the exit code of how it ended."""
    parser = operating(
        "watch",
        "Follow a run live, or show one that is over. Ctrl-C stops watching, not the run; begun"
        " again, it goes on where it was. The run's folder fills as it goes.",
    )
    add_run(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/<id>)")
    asked = parser.parse_args(words)
    with connected(asked) as client:
        run_id = meant_run(client, asked.run).run_id
        return follow(client, run_id, followed_folder(asked.out, run_id), asked)
