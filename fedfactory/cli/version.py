"""`fedfactory version`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version


def run(arguments: Sequence[str]) -> int:
    """Print the versions that matter in a bug report."""
    del arguments
    for package in ("fedfactory", "flwr", "torch", "grpcio"):
        print(f"{package} {version(package)}")
    return 0
