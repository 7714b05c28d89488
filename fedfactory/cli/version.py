"""`fedfactory version`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Final

from fedfactory.cli.arguments import Arguments

PACKAGES: Final = ("fedfactory", "flwr", "torch", "grpcio")


def run(arguments: Sequence[str]) -> int:
    """Print the versions that matter in a bug report."""
    Arguments(prog="fedfactory version", description=run.__doc__).parse_args(arguments)
    for package in PACKAGES:
        print(f"{package} {version(package)}")
    print(f"python {platform.python_version()}")
    return 0
