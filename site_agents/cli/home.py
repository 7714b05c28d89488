"""Which home a command acts on: --home, else $FEDFACTORY_HOME, else this folder if it is one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import UsageError
from site_agents.config import AGENT_FILE

VARIABLE: Final = "FEDFACTORY_HOME"


def add_home(parser: argparse.ArgumentParser, *, also_before: bool = False) -> None:
    """Add --home to a command that acts on a site; `also_before`: its parent has it, too."""
    parser.add_argument(
        "--home",
        type=Path,
        default=argparse.SUPPRESS if also_before else None,
        metavar="DIR",
        help=f"the site's home (default: ${VARIABLE}, else this folder if it holds {AGENT_FILE})",
    )


def find_home(asked: Path | None) -> Path:
    """Return the home that a command was given, absolute.

    Raises:
        UsageError: none was given, or the folder holds no agent.yaml.
    """
    named = asked if asked is not None else os.environ.get(VARIABLE)
    home = (Path(named) if named else Path.cwd()).absolute()
    if not (home / AGENT_FILE).is_file():
        how = "" if named else f"; give --home DIR, or set {VARIABLE}"
        raise UsageError(
            f"{home} holds no {AGENT_FILE}: `site-agent init --home DIR` makes a site's home{how}"
        )
    return home
