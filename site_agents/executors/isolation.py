"""How this site's workers are kept off the network: what its configuration asks, as it is possible.

Each worker begins in fedfactory.isolation, which isolates it. The agent has threads and cannot try
what the kernel permits: a short process does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError
from fedfactory.isolation.launching import LAUNCHER
from fedfactory.isolation.mechanism import Isolation, Mechanism, Network, choose
from site_agents.executors.environment import worker_environment

_TRY_TIMEOUT_S: Final = 60.0


def isolation_of(network: Network | None) -> Isolation:
    """Return how workers are isolated at a site with this worker.network.

    Raises:
        EnvironmentFailedError: isolation is asked for and not possible, or it could not be tried.
    """
    return choose(network, {} if network == "not_enforced" else _refusals())


def _refusals() -> Mapping[Mechanism, str]:
    try:
        done = subprocess.run(
            [sys.executable, *LAUNCHER, "refusals"],
            env=worker_environment(os.environ, 1),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRY_TIMEOUT_S,
            check=True,
        )
        found: dict[Mechanism, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        detail = getattr(error, "stderr", None) or b""
        raise EnvironmentFailedError(
            "which isolation of workers the kernel permits could not be tried",
            diagnostic=detail.decode(errors="replace").strip() or str(error),
        ) from error
    return found
