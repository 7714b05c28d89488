"""`fedfactory report RUN_FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedfactory.cli.arguments import Arguments
from fedfactory.report.saved import read_summary
from fedfactory.report.terminal import lasting


def run(arguments: Sequence[str]) -> int:
    """Print the results of a finished run again."""
    parser = Arguments(prog="fedfactory report", description=run.__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, such as runs/<run id>")
    folder: Path = parser.parse_args(arguments).folder
    summary = read_summary(folder / "summary.json")
    from fedfactory.report.table import print_results

    print_results(summary, str(folder), lasting(sys.stdout))
    return 0
