"""`fedfactory report RUN_FOLDER`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_forms, print_json
from fedfactory.report.saved import read_summary
from fedfactory.report.terminal import lasting


def run(arguments: Sequence[str]) -> int:
    """Print the results of a finished run again."""
    parser = Arguments(prog="fedfactory report", description=run.__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, such as runs/<run id>")
    add_forms(parser)
    asked = parser.parse_args(arguments)
    folder: Path = asked.folder
    summary = read_summary(folder / "summary.json")
    if asked.json:
        print_json(summary)
    elif asked.quiet:
        if (model := summary["model"]["file"]) is not None:
            print(folder / model)
    else:
        from fedfactory.report.table import print_results

        print_results(summary, str(folder), lasting(sys.stdout))
    return 0
