"""What the daemon's log holds of Flower: its warnings, and nothing else."""

from __future__ import annotations

import subprocess
import sys

_START = """
import logging
logging.basicConfig(level=logging.INFO)
from fedfactory.coordinator.flower_seam import Engine, import_engine
import_engine()
Engine(["cesga"])
logging.getLogger("fedfactory.coordinator").info("a run has begun")
"""


def test_flower_logs_nothing_when_the_daemon_and_a_run_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _START], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr.splitlines() == ["INFO:fedfactory.coordinator:a run has begun"]
