"""The command that runs a module isolated, for a process that has threads and can't fork safely."""

from __future__ import annotations

import sys
from typing import Final

from fedfactory.isolation.mechanism import WHERE_POSSIBLE, Network

LAUNCHER: Final = ("-P", "-m", "fedfactory.isolation")


def isolated(network: Network | None, *, gpu: bool) -> tuple[str, ...]:
    """Return the command that runs the module named behind it, isolated as `network` asks.

    `gpu`: it may make the sockets that CUDA needs.
    """
    return (sys.executable, *LAUNCHER, network or WHERE_POSSIBLE, "gpu" if gpu else "cpu")
