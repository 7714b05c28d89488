"""Runs one of Flower's console scripts so that it cannot outlive the coordinator.

`python -m fedfactory.coordinator.tethered PARENT_PID PORT flower-superexec ARG...` asks the kernel
to kill this process when its parent dies, loads the script, waits until somebody listens on that
port of loopback (0: does not wait), then becomes the script. Linux only, like our sites.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib.metadata import entry_points

PR_SET_PDEATHSIG = 1
# A request to SuperLink makes some thousand short-lived objects, none of them a cycle that matters:
# with Python's own thresholds (700, 10, 10) a tenth to a quarter of its time is spent looking.
GC_THRESHOLDS = (50_000, 20, 100)
LOOK_EVERY_S = 0.02


def main() -> None:
    """Tether this process to its parent, then call the named console script."""
    parent_pid, port, script = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we asked
        sys.exit(1)
    gc.set_threshold(*GC_THRESHOLDS)
    (entry,) = entry_points(group="console_scripts", name=script)
    sys.argv = sys.argv[3:]
    run = entry.load()
    if port:
        _wait_for(port)
    sys.exit(run())


def _wait_for(port: int) -> None:
    """Wait for a server. Flower's own wait doubles from try to try, to many seconds."""
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    main()
