"""`fedfactory report RUN_FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fedfactory.cli.arguments import Arguments
from fedfactory.contracts.errors import UsageError


def run(arguments: Sequence[str]) -> int:
    """Print the results of a finished run again."""
    parser = Arguments(prog="fedfactory report", description=run.__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, such as runs/<run id>")
    folder: Path = parser.parse_args(arguments).folder
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: not there; the run is not over, or this is no run") from error
    except ValueError as error:
        raise UsageError(f"{path}: not readable as JSON ({error})") from error
    from fedfactory.report.table import print_results

    print_results(summary, str(folder), sys.stdout)
    return 0
