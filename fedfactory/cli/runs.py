"""`fedfactory runs`: the coordinator's runs, newest first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from fedfactory.cli.arguments import count
from fedfactory.cli.forms import print_json
from fedfactory.cli.operating import connected, operating

LATEST: Final = 20


def run(words: Sequence[str]) -> int:
    """Print the runs; return 0."""
    parser = operating("runs", "List the coordinator's runs, newest first.")
    parser.add_argument("--limit", type=count, default=LATEST, help=f"how many (default {LATEST})")
    asked = parser.parse_args(words)
    with connected(asked) as client:
        found = client.listed_runs(asked.limit)
    rows = found.runs
    if asked.json:
        from fedfactory.contracts.codec import encode

        print_json({"runs": [encode(row) for row in rows], "left_out": list(found.left_out)})
    elif asked.quiet:
        for row in rows:
            print(row.run_id)
    else:
        from fedfactory.operator.telling import run_lines

        print("\n".join(run_lines(rows, found.left_out, time.time())))
    return 0
