"""Runs one of Flower's console scripts so that it cannot outlive the coordinator.

`python -m fedfactory.coordinator.tethered PARENT_PID flower-superlink ARG...` asks the kernel to
kill this process when its parent dies, then becomes the script. Linux only, like our sites.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib.metadata import entry_points

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tether this process to its parent, then call the named console script."""
    parent_pid, script = int(sys.argv[1]), sys.argv[2]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we asked
        sys.exit(1)
    (entry,) = entry_points(group="console_scripts", name=script)
    sys.argv = sys.argv[2:]
    sys.exit(entry.load()())


if __name__ == "__main__":
    main()
