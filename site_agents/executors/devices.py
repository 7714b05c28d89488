"""Which devices a site's workers use: what its configuration names, or every GPU torch sees.

The agent never imports torch: a short process does, and only where the machine shows a GPU at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fedfactory.contracts.errors import EnvironmentFailedError
from site_agents.executors.environment import worker_environment

LOOK_TIMEOUT_S: Final = 120.0
# Made by the drivers of NVIDIA (also under WSL) and AMD.
GPU_NODES: Final = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
_LOOK: Final = (
    "import json, torch; "
    "print(json.dumps([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]))"
)


def find_devices(asked: Sequence[str]) -> tuple[str, ...]:
    """Return the devices that `worker.devices` stands for: cpu, or cuda:0, cuda:1, ...

    Raises:
        EnvironmentFailedError: the machine shows a GPU and torch could not be asked about it.
    """
    if tuple(asked) != ("auto",):
        return tuple(asked)
    if not machine_shows_gpu():
        return ("cpu",)
    return tuple(f"cuda:{index}" for index in range(len(torch_gpus()))) or ("cpu",)


def absent_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Return those of the devices that are not here.

    Raises:
        EnvironmentFailedError: the machine shows a GPU and torch could not be asked about it.
    """
    wanted = [device for device in devices if device != "cpu"]
    if not wanted:
        return ()
    count = len(torch_gpus()) if machine_shows_gpu() else 0
    return tuple(one for one in wanted if int(one.partition(":")[2] or 0) >= count)


def machine_shows_gpu() -> bool:
    """Whether a GPU's driver is here."""
    return any(node.exists() for node in GPU_NODES)


def torch_gpus() -> tuple[str, ...]:
    """Return the names of the GPUs that torch sees, as a worker would, by their index.

    Raises:
        EnvironmentFailedError: torch could not be imported, or did not answer.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _LOOK],
            env=worker_environment(os.environ, 1),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOOK_TIMEOUT_S,
            check=True,
        )
        return tuple(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        detail = getattr(error, "stderr", None) or b""
        raise EnvironmentFailedError(
            "torch could not be asked for its GPUs",
            diagnostic=detail.decode(errors="replace").strip() or str(error),
        ) from error
