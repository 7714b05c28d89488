"""`fedfactory version`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from fedfactory.cli.arguments import Arguments
from fedfactory.cli.forms import add_json, print_json

PACKAGES: Final = ("fedfactory", "flwr", "torch", "grpcio")


def run(arguments: Sequence[str]) -> int:
    """Print the versions that matter in a bug report."""
    parser = Arguments(prog="fedfactory version", description=run.__doc__)
    add_json(parser)
    asked = parser.parse_args(arguments)
    versions = {package: version(package) for package in PACKAGES}
    versions["python"] = platform.python_version()
    if asked.json:
        print_json(versions)
    else:
        for name, found in versions.items():
            print(f"{name} {found}")
    return 0
