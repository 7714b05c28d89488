"""`fedfactory coordinator`: runs the coordinator of a home until SIGTERM; its runs go on later."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from fedfactory.cli.arguments import Arguments

DESCRIPTION = """\
Runs a consortium's coordinator: the gateway that sites and operators connect to, and the runs, each
in a process of its own. One that dies is started again. Runs that have not ended go on when the
coordinator is started again. SIGTERM ends it; under systemd it says when it is ready."""


def run(words: Sequence[str]) -> int:
    """Run the coordinator of a home; return the exit code."""
    parser = Arguments(
        prog="fedfactory coordinator",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog="\n".join(
            ["keys of coordinator.yaml and their defaults (??? must be given):", *_keys()]
        ),
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="what `fedfactory consortium init` made (default: this folder)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="instead of coordinator.yaml's"
    )
    parser.add_argument(
        "--until-stdin-closes",
        action="store_true",
        help="end when standard input closes, as local mode's coordinator does",
    )
    asked = parser.parse_intermixed_args(words)

    from fedfactory.coordinator.coordinator_config import load_coordinator_config

    config = load_coordinator_config(asked.home, asked.overrides)

    from fedfactory.coordinator.daemon import leave, run_coordinator

    code = run_coordinator(config, until_stdin_closes=asked.until_stdin_closes)
    leave(code)
    return code


def _keys() -> list[str]:
    text = (files("fedfactory.conf") / "coordinator.yaml").read_text(encoding="utf-8")
    return [f"  {line}" for line in text.splitlines() if not line.startswith("#")]
